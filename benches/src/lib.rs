//! What Strongroom's benchmarks share. The benchmarks themselves are the binaries and `benches/`.

pub mod statistics;
