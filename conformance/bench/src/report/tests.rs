//! Tests of the page as text: what it has to contain, and what not.

use super::*;
use crate::growth::tests::point;
use crate::report_data::{
    Cost, FORMAT, Failure, Key, Machine, NotMeasured, Settings, Setup, Timeline, TimelineStep,
};

fn report(setup: &str) -> Report {
    let series = |path: &str, failures: Vec<Failure>| Series {
        key: Key {
            setup: setup.to_owned(),
            path: path.to_owned(),
            call: "exec".to_owned(),
            concurrency: 1,
            payload_bytes: 0,
            held: 0,
        },
        samples_ns: (1..=20).map(|sample| sample * 1_000_000).collect(),
        failures,
        cost: Some(Cost {
            cpu_ns_per_call: [("shims".to_owned(), 2_000_000)].into(),
            resident_bytes: [("shims".to_owned(), 10 << 20)].into(),
            ..Cost::default()
        }),
    };
    Report {
        format: FORMAT,
        made_at: "2026-11-26T00:00:00Z".to_owned(),
        machine: Machine {
            cpu: "some".to_owned(),
            cores: 2,
            memory_bytes: 1 << 34,
            kernel: "6.1".to_owned(),
            cgroups: "v2".to_owned(),
            distribution: "Debian 12".to_owned(),
            load_before: "0.1".to_owned(),
        },
        setups: vec![Setup {
            name: setup.to_owned(),
            parts: [("shim".to_owned(), "/s: 1.6".to_owned())].into(),
        }],
        settings: Settings { iterations: 20, warm_up: 1, duration_ms: None, details: Default::default() },
        series: vec![
            series("direct", Vec::new()),
            series("daemon", vec![Failure { turn: 3, error: "<script>alert(1)</script>".to_owned() }]),
        ],
        scale: vec![point("direct", 1, 100), point("direct", 10, 2_000)],
        timelines: vec![Timeline {
            key: Key { call: "start".to_owned(), ..series("plugin", Vec::new()).key },
            count: 20,
            total_ns: 30_000_000,
            containerd_calls: 5,
            steps: vec![TimelineStep {
                name: "shim/exec".to_owned(),
                count: 20,
                begin_ns: 2_000_000,
                length_ns: 9_000_000,
                length_p90_ns: 11_000_000,
            }],
        }],
        not_measured: vec![NotMeasured { what: "exec, cli".to_owned(), why: "no runtime".to_owned() }],
    }
}

#[test]
fn a_page_has_all_that_was_measured_and_nothing_from_elsewhere() {
    let page = page::of(&[report("a & b")]).unwrap();
    for expected in [
        "a &amp; b",
        "/s: 1.6",
        "exec: times",
        "What failed",
        "no runtime",
        "10 (knee)",
        "Memory of those",
        "where a start's time goes on a &amp; b",
        "shim/exec: at 2.00 ms for 9.00 ms",
    ] {
        assert!(page.contains(expected), "{expected}");
    }
    assert!(!page.contains("<script"), "what failed is shown, not run");
    for elsewhere in ["http:", "https:", "src=", "@import", "url("] {
        assert!(!page.contains(elsewhere), "{elsewhere}");
    }
    assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    assert_eq!(page.matches("<td").count(), page.matches("</td>").count());
}

#[test]
fn setups_of_the_same_name_in_two_files_have_names_of_their_own() {
    let named = name_apart(vec![
        (Path::new("one.json"), report("here")),
        (Path::new("two.json"), report("here")),
        (Path::new("three.json"), report("there")),
    ]);
    let named = named.unwrap();
    let names: Vec<_> = named.iter().map(|report| &*report.setups[0].name).collect();
    assert_eq!(names, ["one: here", "two: here", "there"]);
    assert_eq!(named[1].series[0].key.setup, "two: here");
    assert_eq!(named[1].scale[0].setup, "two: here");
    assert_eq!(named[1].timelines[0].key.setup, "two: here");
    let twice =
        name_apart(vec![(Path::new("a/x.json"), report("here")), (Path::new("b/x.json"), report("here"))]);
    assert!(twice.is_err());
}
