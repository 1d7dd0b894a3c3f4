//! `cargo bench -p llama3med`: the products and attention on this machine's processor, one core.

fn main() {
    let start = std::time::Instant::now();
    println!("{}", llama3med::device::cpu::bench::table(|| start.elapsed().as_secs_f64() * 1e3));
}
