//! Gang scheduler, node and devices
