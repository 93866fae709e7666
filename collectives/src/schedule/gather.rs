//! Exchanges in which every rank has something for every other: gathering, scattering, meeting.

use std::ops::Range;

use super::{Action, Receive, Schedule, Send, Step, part};

/// Rank `i` has part `i` of `count` elements, and gets the others around a ring.
pub(crate) fn ring_all_gather(rank: usize, world: usize, count: usize) -> Schedule {
    let at = |index: usize| part(count, world, index % world);
    let steps = (0..world - 1)
        .map(|step| Step {
            send: Some(((rank + 1) % world, at(rank + world - step))),
            receive: Some(((rank + world - 1) % world, at(rank + 2 * world - step - 1), Action::Replace)),
        })
        .collect();
    Schedule::of_blocks(&[steps])
}

/// In round `n` everybody sends to the `n`-th rank after it and receives from the `n`-th before it. Nothing waits for
/// anything else; the order of rounds, the same on all ranks, keeps them from waiting in a circle.
pub(crate) fn pairwise(
    rank: usize,
    world: usize,
    send: impl Fn(usize) -> Range<usize>,
    receive: impl Fn(usize) -> (Range<usize>, Action),
) -> Schedule {
    let mut schedule = Schedule::default();
    for round in 1..world {
        let (to, from) = ((rank + round) % world, (rank + world - round) % world);
        schedule.sends.push(Send { to, range: send(to), after: 0 });
        let (range, action) = receive(from);
        schedule.receives.push(Receive { from, range, action });
    }
    schedule
}

/// A barrier: in each round a rank knows of twice as many that they have come.
pub(crate) fn dissemination(rank: usize, world: usize) -> Schedule {
    let rounds = world.next_power_of_two().ilog2();
    let steps = (0..rounds)
        .map(|round| {
            let distance = 1 << round;
            Step {
                send: Some(((rank + distance) % world, 0..0)),
                receive: Some(((rank + world - distance) % world, 0..0, Action::Replace)),
            }
        })
        .collect();
    Schedule::of_blocks(&[steps])
}

#[cfg(test)]
mod tests {
    use super::super::simulation;
    use super::*;

    #[test]
    fn parts_reach_every_rank() {
        for world in 1..=9 {
            for count in [0, world, 5 * world] {
                let whole: Vec<u64> = (1..=count as u64).collect();
                let data: Vec<Vec<u64>> = (0..world)
                    .map(|rank| {
                        let mut data = vec![0; count];
                        data[part(count, world, rank)].copy_from_slice(&whole[part(count, world, rank)]);
                        data
                    })
                    .collect();
                let ring: Vec<_> = (0..world).map(|rank| ring_all_gather(rank, world, count)).collect();
                assert!(simulation::run(data.clone(), &ring).iter().all(|result| *result == whole));
                let pairs: Vec<_> = (0..world)
                    .map(|rank| {
                        let mine = part(count, world, rank);
                        let theirs = |from| (part(count, world, from), Action::Replace);
                        pairwise(rank, world, |_| mine.clone(), theirs)
                    })
                    .collect();
                assert!(simulation::run(data, &pairs).iter().all(|result| *result == whole));
            }
        }
    }

    #[test]
    fn a_barrier_waits_for_everybody() {
        for world in 1..=9usize {
            // Who is known to have come, as bits; a message tells what its sender knew then.
            let mut known: Vec<u64> = (0..world).map(|rank| 1 << rank).collect();
            for round in 0..world.next_power_of_two().ilog2() as usize {
                let before = known.clone();
                for (rank, known) in known.iter_mut().enumerate() {
                    let schedule = dissemination(rank, world);
                    assert_eq!(schedule.sends[round].after, round, "what it sends, it has been told before");
                    *known |= before[schedule.receives[round].from];
                }
            }
            assert!(known.iter().all(|known| *known == (1 << world) - 1), "{world}");
        }
    }
}
