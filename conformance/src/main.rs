//! Plays Nomad to a driver plugin: the suite, its fixtures, the demo.

fn main() {}
