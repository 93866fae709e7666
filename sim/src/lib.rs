//! A seeded world: the real controllers over a simulated node, with faults and invariants
