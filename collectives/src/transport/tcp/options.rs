//! How the network is used: settings, and the choice of an algorithm.

/// How ranks reach each other over TCP. All ranks of a job need the same.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TcpOptions {
    /// Parallel connections between two ranks for large data. By default one between ranks of one address, four
    /// between others.
    pub streams: Option<usize>,
    /// Rules that come before the built-in ones: the first that fits decides.
    pub algorithms: Vec<Rule>,
    /// What f32 data is rounded to on the wire, where speed is worth more than digits.
    pub compression: Option<Compression>,
    /// Whether connections are encrypted, by TLS 1.3 with certificates that ranks make for themselves. Ranks are
    /// authenticated by the job's secret either way.
    pub tls: bool,
}

/// How an all-reduce goes. 16-bit floats, which are added up in f32 and rounded once, go straight to the rank that
/// completes their part, in place of halving and doubling or a ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Algorithm {
    /// Everybody sends all to everybody and adds up by itself: one hop. For little data, and few ranks.
    Direct,
    /// Halves of halves to ranks ever nearer, and back: few hops, least bytes.
    RecursiveHalvingDoubling,
    /// From rank to rank around a ring: many hops, least bytes, each rank with two others.
    Ring,
    /// Up a binary tree and down again: few hops, each rank with at most three others.
    Tree,
}

/// Which algorithm reduces up to so many bytes on up to so many ranks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rule {
    pub ranks_up_to: usize,
    pub bytes_up_to: usize,
    pub algorithm: Algorithm,
}

/// A shorter form of f32 on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compression {
    /// bfloat16 for sums, means, minima, maxima and products of f32. Every hop sends bf16 and combines in f32; the
    /// result is a bf16 value, the same on all ranks. Data that [`Algorithm::Direct`] reduces stays exact.
    ///
    /// Rounding to bf16 has a relative error of at most `u = 2^-8`. A sum is made of partial sums, each rounded when
    /// it is sent, and once more at the end. A value passes at most `h` roundings: `world` around a ring,
    /// `ceil(log2(world)) + 2` with halving and doubling, `floor(log2(world)) + 1` along a tree. Each multiplies what
    /// it has become part of by some `1 + d`, `|d| <= u`. Hence the sum of `x_i` is off by at most
    /// `((1 + u)^h - 1) * (|x_1| + .. + |x_n|)`, apart from f32's own rounding and from values below bf16's smallest
    /// normal number: about 0.4 % of the sum of magnitudes for every hop. A mean is off by as much, divided by the
    /// number of ranks.
    Bf16,
}

/// Most parallel connections between two ranks.
pub(crate) const LANES: usize = 16;

/// Fewer bytes than this are not worth a second connection: over a link of 1 Gbit/s four connections were 5 % slower
/// than one with 16 MB, and as fast with 100 MB.
const STRIPED: usize = 16 << 20;

impl TcpOptions {
    /// The algorithm for an all-reduce of `bytes` on `world` ranks.
    pub(crate) fn algorithm(&self, world: usize, bytes: usize) -> Algorithm {
        let fits = |rule: &&Rule| world <= rule.ranks_up_to && bytes <= rule.bytes_up_to;
        self.algorithms.iter().chain(&BUILT_IN).find(fits).map_or(Algorithm::Ring, |rule| rule.algorithm)
    }

    /// Over how many connections `bytes` go from one rank to another: the same at both.
    pub(crate) fn lanes(&self, same_address: bool, bytes: usize) -> usize {
        if bytes < STRIPED {
            return 1;
        }
        self.streams.unwrap_or(if same_address { 1 } else { 4 }).clamp(1, LANES)
    }
}

const fn rule(ranks_up_to: usize, bytes_up_to: usize, algorithm: Algorithm) -> Rule {
    Rule { ranks_up_to, bytes_up_to, algorithm }
}

/// Measured on two cores over loopback with `examples/tcp_bench.rs`, for 2, 3, 4 and 8 ranks; what no rule
/// fits goes around the ring. With many ranks a small reduction costs what its messages cost, and a tree needs the fewest; a ring's steps are too
/// many for what is not large.
const BUILT_IN: [Rule; 7] = [
    rule(2, 64 << 10, Algorithm::Direct),
    rule(3, 128 << 10, Algorithm::Direct),
    rule(4, 8 << 10, Algorithm::Direct),
    rule(4, usize::MAX, Algorithm::RecursiveHalvingDoubling),
    rule(usize::MAX, 512 << 10, Algorithm::Tree),
    rule(16, usize::MAX, Algorithm::Ring),
    rule(usize::MAX, 16 << 20, Algorithm::RecursiveHalvingDoubling),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rule_that_fits_decides() {
        let mut options = TcpOptions::default();
        assert_eq!(options.algorithm(2, 4096), Algorithm::Direct);
        assert_eq!(options.algorithm(2, 1 << 30), Algorithm::RecursiveHalvingDoubling);
        assert_eq!(options.algorithm(64, 1 << 30), Algorithm::Ring);
        options.algorithms.push(rule(2, 100, Algorithm::Tree));
        assert_eq!(options.algorithm(2, 100), Algorithm::Tree);
        assert_eq!(options.algorithm(2, 101), Algorithm::Direct);
        assert_eq!(options.algorithm(3, 100), Algorithm::Direct);
    }

    #[test]
    fn only_much_data_is_striped() {
        let options = TcpOptions { streams: Some(100), ..TcpOptions::default() };
        assert_eq!(options.lanes(true, 1000), 1);
        assert_eq!(options.lanes(true, 100 << 20), LANES);
        assert_eq!(TcpOptions::default().lanes(true, 100 << 20), 1);
        assert_eq!(TcpOptions::default().lanes(false, 100 << 20), 4);
    }
}
