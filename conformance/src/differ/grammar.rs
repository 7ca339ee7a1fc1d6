//! Which jobs a run has: one of each value of each option, one of each image, and some made at random.

use anyhow::Result;
use serde_json::json;

use super::images::{self, BARE, PLAIN};
use super::job::{Ending, Job};
use super::options::{Choice, OF_ANY_TASK, OF_DOCKER, named};
use crate::random::Random;

/// Options that, at random, would keep most jobs from running, or have the task see what it shares with the host.
const NOT_AT_RANDOM: [&str; 9] = [
    "image",
    "load",
    "unknown",
    "isolation",
    "storage_opt",
    "pid_mode",
    "ports",
    "port_map",
    "volume_driver",
];

/// Returns the jobs of each option's values, or of those of one option.
///
/// # Errors
/// Names a value that is no JSON.
pub fn of_options(only: Option<&str>) -> Result<Vec<Job>> {
    let jobs: Result<Vec<_>> = named(only).map(Choice::jobs).collect();
    Ok(jobs?.into_iter().flatten().collect())
}

/// Returns a job of each image, and some of the image without layers.
pub fn of_images() -> Vec<Job> {
    let mut jobs: Vec<_> = images::names().map(|name| Job::of(format!("image {name}"), name)).collect();
    jobs.push(Job::of("image without files", BARE));
    let mut bare = Job::of("image without layers, with mounts", BARE);
    bare.apply(
        "volumes",
        &json!({"volumes": ["{shared}/busybox:/bin/busybox", "{shared}/probe:/bin/probe:ro"]}),
    );
    jobs.push(bare);
    jobs
}

/// Returns the job of a seed: an image, and values of some options.
///
/// # Errors
/// Names a value that is no JSON.
pub fn at_random(seed: u64) -> Result<Job> {
    let mut random = Random::of(seed);
    let names: Vec<_> = images::names().collect();
    let image = if random.chance(50) { PLAIN } else { random.pick(&names) };
    let mut job = Job::of(format!("seed {seed}"), image);
    let all: Vec<&Choice> = OF_DOCKER.iter().chain(&OF_ANY_TASK).collect();
    let wanted = 1 + random.below(5);
    while job.options.len() < wanted {
        let choice = *random.pick(&all);
        if NOT_AT_RANDOM.contains(&choice.option) || job.options.contains(&choice.option) {
            continue;
        }
        choice.apply_any(&mut random, &mut job)?;
    }
    if job.ending == Ending::Signal && random.chance(30) {
        job.apply("exit", &json!({"end": random.word(&["0", "1", "3", "126", "deaf"])}));
    }
    job.about = format!("seed {seed}: {image} {}", job.options.join(" "));
    Ok(job)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_makes_the_same_job_again() {
        let text = |seed| at_random(seed).unwrap().text("j", "n", "i", &str::to_owned).to_string();
        assert_eq!(text(5), text(5));
        assert_ne!(text(5), text(6));
    }

    #[test]
    fn names_of_options_that_are_left_out_are_names_of_options() {
        for name in NOT_AT_RANDOM {
            assert_eq!(named(Some(name)).count(), 1, "{name}");
        }
    }
}
