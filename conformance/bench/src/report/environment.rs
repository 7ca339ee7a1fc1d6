//! Renders the machine and the setups that the figures were taken on, and what could not be measured there.

use super::table::{Cell, table};
use crate::format;
use crate::report_data::{Machine, Report};

pub(crate) fn of(reports: &[Report]) -> String {
    let mut text = "<h2 id=\"ground\">Taken on</h2>\n".to_owned();
    let machines = reports.iter().map(|report| {
        let Machine { cpu, cores, memory_bytes, kernel, cgroups, distribution, load_before } =
            &report.machine;
        let facts = [&report.made_at, cpu, &cores.to_string(), &format::bytes(*memory_bytes as f64)];
        let more = [kernel, cgroups, distribution, load_before];
        let settings = &report.settings;
        let length = settings
            .duration_ms
            .map_or_else(|| format!("{} turns", settings.iterations), |ms| format!("{} s", ms / 1000));
        let length = format!("{length} after {} to warm up", settings.warm_up);
        facts.into_iter().chain(more).cloned().chain([length]).map(Cell::Word).collect()
    });
    let heads = [
        "made at",
        "processor",
        "cores",
        "memory",
        "kernel",
        "control groups",
        "distribution",
        "load before",
        "length",
    ];
    text += &table("Machines, a row a report", &heads, &machines.collect::<Vec<_>>());
    let setups = reports.iter().flat_map(|report| &report.setups).flat_map(|setup| {
        setup.parts.iter().map(|(part, version)| {
            vec![Cell::Word(setup.name.clone()), Cell::Word(part.clone()), Cell::Long(version.clone())]
        })
    });
    text + &table(
        "Setups, and the versions of their parts",
        &["setup", "part", "version"],
        &setups.collect::<Vec<_>>(),
    )
}

pub(crate) fn not_measured(reports: &[Report]) -> String {
    let rows = reports.iter().flat_map(|report| &report.not_measured);
    let rows: Vec<_> =
        rows.map(|missing| vec![Cell::Long(missing.what.clone()), Cell::Long(missing.why.clone())]).collect();
    if rows.is_empty() {
        return String::new();
    }
    "<h2 id=\"not-measured\">Not measured</h2>\n".to_owned() + &table("", &["what", "why"], &rows)
}
