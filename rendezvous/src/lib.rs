//! Membership of a training job: epochs, ranks, heartbeats
