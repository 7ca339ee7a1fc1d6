//! Prints a comparison as a table for a terminal.

use super::{Args, Comparison, Line, Verdict, setups};
use crate::format;
use crate::report_data::{Key, Report, Setup};

pub(crate) fn print(base: &Report, other: &Report, comparison: &Comparison, args: &Args) {
    print_environment(base, other, comparison);
    println!(
        "\n{:<44} {:>10} {:>10} {:>7} {:>16}  {:<14} failed",
        "", "first", "second", "ratio", "19 times in 20", "verdict"
    );
    for line in &comparison.lines {
        print_line(line);
    }
    print_alone(&comparison.missing, other, "first");
    print_alone(&comparison.new, base, "second");
    let counts = [
        (Verdict::Worse, "worse"),
        (Verdict::Better, "better"),
        (Verdict::Same, "same"),
        (Verdict::Unclear, "unclear, as the interval crosses the threshold"),
        (Verdict::TooFew, "with too few samples"),
    ];
    let counts = counts.into_iter().map(|(verdict, word)| (comparison.count(verdict), word));
    let shown: Vec<_> =
        counts.filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}")).collect();
    println!("\nat a threshold of {} %: {}", args.threshold * 100.0, shown.join(", "));
}

/// Prints the series that only one report has. A setup that the other report lacks as a whole is printed as one line.
fn print_alone(keys: &[Key], counterpart: &Report, which: &str) {
    let mut printed = Vec::new();
    for key in keys {
        let has_setup = counterpart.setups.iter().any(|setup| setup.name == key.setup);
        let what = if has_setup { name(key) } else { format!("setup {}", key.setup) };
        if !printed.contains(&what) {
            println!("only in the {which} report: {what}");
            printed.push(what);
        }
    }
}

/// Prints the machine and the setups that the figures were taken on, and what differs between the two reports.
fn print_environment(base: &Report, other: &Report, comparison: &Comparison) {
    if base == other {
        println!("one run of {}, setups {}; compared turn by turn", base.made_at, setups(base));
    } else {
        println!("first:  {}, setups {}", base.made_at, setups(base));
        println!("second: {}, setups {}", other.made_at, setups(other));
        println!("two runs: what the machine did between them is in no interval; one run of both is surer");
    }
    for difference in &comparison.machines {
        println!("the machines differ in {difference}");
    }
    if comparison.machines.is_empty() {
        let machine = &base.machine;
        let (cpu, kernel) = (&machine.cpu, &machine.kernel);
        println!(
            "both on {cpu}, {} cores, Linux {kernel}, control groups {}",
            machine.cores, machine.cgroups
        );
    }
    let same_name = |setup: &Setup| other.setups.iter().find(|other| other.name == setup.name).cloned();
    for (base, other) in base.setups.iter().filter_map(|setup| Some((setup, same_name(setup)?))) {
        for (part, version) in
            base.parts.iter().filter(|(part, version)| other.parts.get(*part) != Some(version))
        {
            let now = other.parts.get(part).map_or("none", String::as_str);
            println!("setup {}: {part} is {now}, and was {version}", base.name);
        }
    }
}

fn print_line(line: &Line) {
    let ms = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |ns| format::milliseconds(ns as f64));
    let (ratio, interval) = line.ratio.map_or(("-".to_owned(), "-".to_owned()), |ratio| {
        (format!("{:.3}", ratio.value), format!("{:.3} to {:.3}", ratio.low, ratio.high))
    });
    let word = match line.verdict {
        Verdict::Better => "better",
        Verdict::Worse => "WORSE",
        Verdict::Same => "same",
        Verdict::Unclear => "unclear",
        Verdict::TooFew => "too few",
        Verdict::NotComparable => "not comparable",
    };
    let failed = line.failed.map(|(failed, of)| format!("{failed} of {of}")).join(", ");
    let failed = if line.fails_more() { format!("{failed}: MORE") } else { failed };
    let name = match &line.other_setup {
        Some(other) => format!("{}, {other}", name(&line.key)),
        None => name(&line.key),
    };
    println!(
        "{name:<44} {:>10} {:>10} {ratio:>7} {interval:>16}  {word:<14} {failed}",
        ms(line.base),
        ms(line.other),
    );
}

fn name(key: &Key) -> String {
    format!("{}, {}, {}", format::call(key), key.path, key.setup)
}
