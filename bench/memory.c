// How a processor reads memory while it computes: cc -O2 -mavx2 bench/memory.c -o target/memory && target/memory
//
// Each 64-byte line is used by 32 instructions; with and without a prefetch instruction, which wasm does not have. Then the time of a read that depends on the
// previous one. With pages of 4 KiB, as wasm has them, and with large ones. See notes.md.
#define _GNU_SOURCE
#include <immintrin.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#define LARGE (1ull << 30)
#define SMALL (1ull << 20)
#define N_READS 2000000

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec * 1e-9;
}

// GB/s, with `n_pairs` pairs of instructions per line, prefetching `ahead` bytes ahead if that is not 0.
static inline __attribute__((always_inline)) double read_all(const uint8_t *bytes, size_t n, int n_pairs, int ahead, int n_rounds) {
  double best = 1e9;
  for (int round = 0; round < n_rounds; round++) {
    double start = now();
    __m128i a = _mm_setzero_si128(), b = a;
    for (size_t i = 0; i < n; i += 64) {
      if (ahead) _mm_prefetch((const char *)bytes + i + ahead, _MM_HINT_T0);
      __m128i x = _mm_loadu_si128((const __m128i *)(bytes + i));
      __asm__ volatile("" ::"x"(x)); // force the read although nothing uses it
      for (int k = 0; k < n_pairs; k++) {
        a = _mm_add_epi8(a, x), b = _mm_sub_epi8(b, x);
        __asm__ volatile("" : "+x"(a), "+x"(b));
      }
    }
    __asm__ volatile("" ::"x"(a), "x"(b));
    double seconds = now() - start;
    best = seconds < best ? seconds : best;
  }
  return n / best * 1e-9;
}

// Nanoseconds of a read whose address is the result of the previous read, in random order.
static double dependent(uint8_t *bytes) {
  uint32_t n = LARGE / 64, *order = malloc(n * sizeof *order);
  uint64_t state = 88172645463325252ull;
  for (uint32_t i = 0; i < n; i++) order[i] = i;
  for (uint32_t i = n - 1; i > 0; i--) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    uint32_t j = state % i, other = order[i];
    order[i] = order[j], order[j] = other;
  }
  for (uint32_t i = 0; i < n; i++) *(uint64_t *)(bytes + 64ull * order[i]) = 64ull * order[(i + 1) % n];
  free(order);
  uint64_t at = 0;
  double start = now();
  for (int i = 0; i < N_READS; i++) at = *(volatile uint64_t *)(bytes + at);
  return (now() - start) / N_READS * 1e9;
}

int main(void) {
  for (int large_pages = 0; large_pages < 2; large_pages++) {
    uint8_t *bytes = mmap(0, LARGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (bytes == MAP_FAILED) return perror("mmap"), 1;
    madvise(bytes, LARGE, large_pages ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    for (size_t i = 0; i < LARGE; i += 8) *(uint64_t *)(bytes + i) = i * 0x9e3779b97f4a7c15ull;
    printf("%s pages, GB/s of one core: reads alone %.1f; with 32 instructions a line, from cache %.1f, from memory %.1f, with prefetch %.1f",
           large_pages ? "large" : "small", read_all(bytes, LARGE, 0, 0, 2), read_all(bytes, SMALL, 16, 0, 40), read_all(bytes, LARGE, 16, 0, 2),
           read_all(bytes, LARGE, 16, 1024, 2));
    printf("; a dependent read %.0f ns\n", dependent(bytes));
    munmap(bytes, LARGE);
  }
}
