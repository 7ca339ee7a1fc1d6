//! A model of two attempts of one task, with the agent, the plugin and the host around them: start, stop, end, destroy,
//! recovery, the sweeper and the pass for orphans, in steps between which anything else may happen. It is explored
//! exhaustively, and no more than [`FAULTS`] faults come on one way. Decisions are the driver's own functions.
//!
//! [Record 41](../../../docs/design/41-a-model-of-a-tasks-life.md) says what it leaves out.

mod agent;
mod disk;
mod explorer;
mod host;
mod phases;
mod recovery;
mod start;
mod steps;
mod teardown;
mod world;

use explorer::Explored;
use host::{Parts, Process};
use world::{Doing, Slot, World};

/// Number of faults on one way.
const FAULTS: u8 = 2;
/// Number of states. Another one means that the model, or a decision of the driver's, has changed: whether it still tries
/// what it should has to be looked at.
const STATES: usize = 250_938;

fn is_clean(world: &World) -> bool {
    world.agent.doing == Doing::Done
        && world
            .plugin
            .as_ref()
            .is_some_and(|slots| slots.iter().all(|slot| matches!(slot, Slot::Nobody { .. })))
        && world.parts.iter().all(Parts::is_nothing_left)
}

#[test]
fn from_any_two_faults_a_task_recovers_and_nothing_is_left() {
    let explored = Explored::from(&[World::new(true, FAULTS), World::new(false, FAULTS)]);
    let states = explored.states.len();
    assert_eq!(states, STATES, "the model tries more or less than it did");
    // Whatever the agent has given up is removed, also where no process ends by itself.
    let is_given_up = |world: &World| world.agent.doing == Doing::Done;
    explored.require("an agent that needs nothing more has nothing left", is_given_up, is_clean);
    let has_next = |world: &World| {
        let agent = &world.agent;
        agent.is_over && agent.attempt == 0 && (agent.doing != Doing::Away || agent.is_saved)
            || agent.attempt == 1 && matches!(agent.doing, Doing::Idle | Doing::Starting)
    };
    let runs = |world: &World| world.agent.doing == Doing::Waiting && world.agent.attempt == 1;
    explored.require("the next attempt runs", has_next, runs);
    // A task whose process has ended is reported, or given up.
    let has_ended = |world: &World| {
        let parts = &world.parts[world.agent.attempt];
        world.agent.doing == Doing::Waiting && matches!(parts.process, Process::Ended(_))
    };
    let is_heard = |world: &World| world.agent.is_over;
    explored.require("an end is heard of", has_ended, is_heard);
}
