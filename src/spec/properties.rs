//! Properties of every specification, tested with random options generated from the schema.

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::Value;

use super::golden::{built, task};
use super::*;
use crate::config::{DriverName, arbitrary};

fn texts<'a>(spec: &'a Value, list: &str, field: &str) -> Vec<&'a str> {
    let entries = spec.pointer(list).and_then(Value::as_array).into_iter().flatten();
    entries.filter_map(|entry| entry[field].as_str()).collect()
}

/// Checks what no job can change, and what every runtime needs.
fn check(spec: &Value) -> Result<(), TestCaseError> {
    prop_assert_eq!(&spec["root"]["path"], "/run/containerd-driver/nomad/web-1/rootfs");
    prop_assert_eq!(&spec["linux"]["cgroupsPath"], "/nomad/5f1b2c3d.web");
    prop_assert!(spec["process"]["args"].as_array().is_some_and(|args| !args.is_empty()));
    prop_assert!(spec["process"]["cwd"].as_str().is_some_and(|cwd| cwd.starts_with('/')));
    for target in texts(spec, "/mounts", "destination") {
        prop_assert!(target.starts_with('/'), "a mount at {target:?}");
    }
    let mut namespaces = texts(spec, "/linux/namespaces", "type");
    prop_assert!(namespaces.contains(&"mount"), "no mount namespace among {namespaces:?}");
    namespaces.sort_unstable();
    let count = namespaces.len();
    namespaces.dedup();
    prop_assert_eq!(count, namespaces.len(), "one is there twice");
    Ok(())
}

proptest! {
    #[test]
    fn random_options_keep_the_specifications_invariants(options in arbitrary::task()) {
        let bytes = rmp_serde::to_vec_named(&options).unwrap();
        let Ok(options) = TaskOptions::decode(DriverName::ContainerdDriver, &bytes) else { return Ok(()) };
        match built(&options, &task()) {
            Ok(spec) => {
                check(&spec)?;
                let read: Spec = serde_json::from_value(spec).unwrap();
                prop_assert!(with_private_pids(read).is_ok());
            }
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }
}

/// Makes sure that enough random options are valid for the property test to mean something.
#[test]
fn most_random_options_make_a_specification() {
    let mut runner = TestRunner::deterministic();
    let made = |_: &u32| {
        let options = arbitrary::task().new_tree(&mut runner).unwrap().current();
        let options = TaskOptions::decode(DriverName::Docker, &rmp_serde::to_vec_named(&options).unwrap());
        options.is_ok_and(|options| built(&options, &task()).is_ok())
    };
    // About one in eight is; the order in a map of options is random, here too.
    let count = (0..600_u32).filter(made).count();
    assert!(count > 40, "{count} of 600");
}
