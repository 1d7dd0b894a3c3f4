//! Ranks: N copies of one program, each holding 1/N of every large matrix, that exchange sums.
//!
//! Tensor parallelism as in Megatron-LM (arXiv 1909.08053): the partial results of column-split matrices are summed
//! over the ranks; everything else is computed where its weights are. The collectives are written once, on the small
//! [`Peers`] trait, and do not depend on what carries the bytes (threads here, message ports in the browser). Every
//! rank must call the same collectives in the same order.

use crate::error::{Error, Result};
use std::sync::mpsc::{Receiver, Sender, channel};

/// A way to exchange bytes with the other ranks, in order and without loss.
#[allow(async_fn_in_trait)] // single-threaded wasm and one thread per rank: no Send futures needed
pub trait Peers {
    /// This rank, `0..n_ranks`. Rank 0 leads: it owns the tokenizer, the history and the sampler.
    fn rank(&self) -> usize;
    /// Number of ranks.
    fn n_ranks(&self) -> usize;
    /// Sends one message to rank `to`.
    fn send(&self, to: usize, bytes: &[u8]) -> Result<()>;
    /// Waits for the next message from rank `from`.
    async fn recv(&self, from: usize) -> Result<Vec<u8>>;
}

/// Replaces `x` on every rank by the sum of all ranks' `x`, with the same bits on all of them.
///
/// Ranks beyond the largest power of two first send their values to a partner. The others add pairwise, then pairs of
/// pairs, in one of two ways that give the same bits: recursive doubling exchanges the whole of `x` log2(N) times;
/// halving exchanges less than two times `x`, in twice as many messages. In Chromium a message costs as much as 30 to
/// 60 KB of its content, so sums for one token use doubling and sums for a prompt use halving.
pub async fn sum<P: Peers>(peers: &P, x: &mut [f32]) -> Result<()> {
    let (rank, n_ranks) = (peers.rank(), peers.n_ranks());
    let n_paired = prev_power_of_two(n_ranks);
    if rank >= n_paired {
        peers.send(rank - n_paired, bytemuck::cast_slice(x))?;
        return copy_into(x, &peers.recv(rank - n_paired).await?);
    }
    let folded = rank + n_paired;
    if folded < n_ranks {
        add_into(x, &peers.recv(folded).await?)?;
    }
    match x.len() < LONG {
        true => sum_by_doubling(peers, n_paired, x).await?,
        false => sum_by_halving(peers, n_paired, x).await?,
    }
    if folded < n_ranks {
        peers.send(folded, bytemuck::cast_slice(x))?;
    }
    Ok(())
}

/// Number of values from which a sum uses halving.
const LONG: usize = 1 << 16;

/// Each exchange doubles the number of ranks included in everybody's sum. Addition of two numbers is commutative, so
/// both partners get the same bits.
async fn sum_by_doubling<P: Peers>(peers: &P, n_paired: usize, x: &mut [f32]) -> Result<()> {
    let mut distance = 1;
    while distance < n_paired {
        let partner = peers.rank() ^ distance;
        peers.send(partner, bytemuck::cast_slice(x))?;
        add_into(x, &peers.recv(partner).await?)?;
        distance *= 2;
    }
    Ok(())
}

/// Each exchange halves what a rank continues to sum, the partner taking the other half; then the sums are gathered
/// along the same path in reverse.
async fn sum_by_halving<P: Peers>(peers: &P, n_paired: usize, x: &mut [f32]) -> Result<()> {
    let mut own = 0..x.len();
    let mut halves = Vec::new();
    let mut distance = 1;
    while distance < n_paired {
        let partner = peers.rank() ^ distance;
        let (low, high) = (own.start..own.start + own.len() / 2, own.start + own.len() / 2..own.end);
        let (kept, given) = if peers.rank() < partner { (low, high) } else { (high, low) };
        peers.send(partner, bytemuck::cast_slice(&x[given.clone()]))?;
        add_into(&mut x[kept.clone()], &peers.recv(partner).await?)?;
        halves.push((partner, given));
        own = kept;
        distance *= 2;
    }
    for (partner, given) in halves.into_iter().rev() {
        peers.send(partner, bytemuck::cast_slice(&x[own.clone()]))?;
        copy_into(&mut x[given.clone()], &peers.recv(partner).await?)?;
        own = own.start.min(given.start)..own.end.max(given.end);
    }
    Ok(())
}

/// Appends every rank's `x` to `all` on rank 0, in rank order; the other ranks' `all` is unchanged.
pub async fn gather<P: Peers>(peers: &P, x: &[f32], all: &mut Vec<f32>) -> Result<()> {
    if peers.rank() > 0 {
        return peers.send(0, bytemuck::cast_slice(x));
    }
    all.extend_from_slice(x);
    for from in 1..peers.n_ranks() {
        let bytes = peers.recv(from).await?;
        if bytes.len() % 4 != 0 {
            return Err(Error::RankLost(format!("rank {from} sent {} bytes, not a whole number of f32", bytes.len())));
        }
        all.extend(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
    }
    Ok(())
}

/// Sends rank 0's `message` to every rank, along a binary tree.
pub async fn broadcast<P: Peers>(peers: &P, message: &mut Vec<u8>) -> Result<()> {
    let (rank, n_ranks) = (peers.rank(), peers.n_ranks());
    let mut distance = n_ranks.next_power_of_two() / 2;
    if rank > 0 {
        let lowest_bit = 1 << rank.trailing_zeros();
        *message = peers.recv(rank - lowest_bit).await?;
        distance = lowest_bit / 2;
    }
    while distance > 0 {
        if rank + distance < n_ranks {
            peers.send(rank + distance, message)?;
        }
        distance /= 2;
    }
    Ok(())
}

/// The only rank.
pub struct Alone;

impl Peers for Alone {
    fn rank(&self) -> usize {
        0
    }
    fn n_ranks(&self) -> usize {
        1
    }
    fn send(&self, to: usize, _: &[u8]) -> Result<()> {
        Err(Error::RankLost(format!("no rank {to}: there is only one")))
    }
    async fn recv(&self, from: usize) -> Result<Vec<u8>> {
        Err(Error::RankLost(format!("no rank {from}: there is only one")))
    }
}

/// Ranks as native threads: one channel per ordered pair, for the tool and the tests.
pub struct Threads {
    rank: usize,
    senders: Vec<Option<Sender<Vec<u8>>>>,
    receivers: Vec<Option<Receiver<Vec<u8>>>>,
}

impl Threads {
    /// The connected endpoints of `n_ranks` ranks, to be moved into their threads.
    pub fn connect(n_ranks: usize) -> Vec<Self> {
        let mut ranks: Vec<Self> = (0..n_ranks)
            .map(|rank| Self {
                rank,
                senders: (0..n_ranks).map(|_| None).collect(),
                receivers: (0..n_ranks).map(|_| None).collect(),
            })
            .collect();
        for from in 0..n_ranks {
            for to in (0..n_ranks).filter(|&to| to != from) {
                let (sender, receiver) = channel();
                ranks[from].senders[to] = Some(sender);
                ranks[to].receivers[from] = Some(receiver);
            }
        }
        ranks
    }
}

impl Peers for Threads {
    fn rank(&self) -> usize {
        self.rank
    }
    fn n_ranks(&self) -> usize {
        self.senders.len()
    }
    fn send(&self, to: usize, bytes: &[u8]) -> Result<()> {
        let sender = self.senders.get(to).and_then(Option::as_ref);
        let sent = sender.and_then(|sender| sender.send(bytes.to_vec()).ok());
        sent.ok_or_else(|| Error::RankLost(format!("rank {to} is gone")))
    }
    async fn recv(&self, from: usize) -> Result<Vec<u8>> {
        let receiver = self.receivers.get(from).and_then(Option::as_ref);
        let received = receiver.and_then(|receiver| receiver.recv().ok());
        received.ok_or_else(|| Error::RankLost(format!("rank {from} is gone")))
    }
}

/// Runs a future that only waits for [`Threads`] or [`Alone`], whose `recv` blocks the thread instead of yielding.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    loop {
        if let std::task::Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        std::thread::yield_now();
    }
}

fn prev_power_of_two(n: usize) -> usize {
    1 << n.ilog2()
}

fn check_len(x: &[f32], bytes: &[u8]) -> Result<()> {
    if bytes.len() == size_of_val(x) {
        return Ok(());
    }
    Err(Error::RankLost(format!("ranks are out of step: expected {} bytes, got {}", size_of_val(x), bytes.len())))
}

fn copy_into(x: &mut [f32], bytes: &[u8]) -> Result<()> {
    check_len(x, bytes)?;
    bytemuck::cast_slice_mut::<f32, u8>(x).copy_from_slice(bytes);
    Ok(())
}

fn add_into(x: &mut [f32], bytes: &[u8]) -> Result<()> {
    check_len(x, bytes)?;
    for (x, b) in x.iter_mut().zip(bytes.chunks_exact(4)) {
        *x += f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_ranks<T: Send>(n_ranks: usize, run: impl Fn(Threads) -> T + Sync) -> Vec<T> {
        std::thread::scope(|scope| {
            let handles: Vec<_> =
                Threads::connect(n_ranks).into_iter().map(|peers| scope.spawn(|| run(peers))).collect();
            handles.into_iter().map(|handle| handle.join().unwrap()).collect()
        })
    }

    #[test]
    fn sums_are_right_and_the_same_on_every_rank() {
        for n_ranks in 1..=16 {
            let sums = on_ranks(n_ranks, |peers| {
                let mut x = [0.1 + peers.rank() as f32, -1e-3 * peers.rank() as f32];
                block_on(sum(&peers, &mut x)).unwrap();
                x
            });
            let ranks: f32 = (0..n_ranks).map(|rank| rank as f32).sum();
            assert!((sums[0][0] - 0.1 * n_ranks as f32 - ranks).abs() < 1e-3);
            assert!(sums.iter().all(|x| x == &sums[0]), "{n_ranks} ranks: {sums:?}");
        }
    }

    #[test]
    fn halving_gives_the_same_bits_as_doubling() {
        let value = |rank: usize, i: usize| ((rank * 7919 + i * 104_729) % 10_007) as f32 * 1e-3 - 4.7;
        for (n_ranks, n) in [(2, 1), (2, 5), (4, 1023), (8, 64), (16, 777)] {
            let by = |halving: bool| {
                on_ranks(n_ranks, |peers| {
                    let mut x: Vec<f32> = (0..n).map(|i| value(peers.rank(), i)).collect();
                    match halving {
                        true => block_on(sum_by_halving(&peers, n_ranks, &mut x)).unwrap(),
                        false => block_on(sum_by_doubling(&peers, n_ranks, &mut x)).unwrap(),
                    }
                    x
                })
            };
            let (halved, doubled) = (by(true), by(false));
            assert!(halved.iter().all(|x| x == &doubled[0]), "{n_ranks} ranks, {n} values");
        }
        for n_ranks in [3, 4, 6] {
            let sums = on_ranks(n_ranks, |peers| {
                let mut x: Vec<f32> = (0..LONG + 1).map(|i| value(peers.rank(), i)).collect();
                block_on(sum(&peers, &mut x)).unwrap();
                x
            });
            assert!(sums.iter().all(|x| x == &sums[0]));
            let exact = (0..n_ranks).map(|rank| value(rank, LONG) as f64).sum::<f64>();
            assert!((sums[0][LONG] as f64 - exact).abs() < 1e-4);
        }
    }

    #[test]
    fn gather_keeps_rank_order_and_broadcast_reaches_all() {
        for n_ranks in 1..=16 {
            let results = on_ranks(n_ranks, |peers| {
                let mut all = Vec::new();
                block_on(gather(&peers, &[peers.rank() as f32], &mut all)).unwrap();
                let mut message = if peers.rank() == 0 { vec![7, 8, 9] } else { Vec::new() };
                block_on(broadcast(&peers, &mut message)).unwrap();
                (all, message)
            });
            assert_eq!(results[0].0, (0..n_ranks).map(|rank| rank as f32).collect::<Vec<_>>());
            assert!(results.iter().all(|(_, message)| message == &[7, 8, 9]));
        }
    }

    #[test]
    fn a_lost_rank_is_an_error_and_nobody_waits_for_ever() {
        let results = on_ranks(3, |peers| {
            if peers.rank() == 1 {
                return Err(Error::Cancelled);
            }
            block_on(sum(&peers, &mut [1.0]))
        });
        assert!(results.iter().all(|result| result.is_err()), "{results:?}");
    }
}
