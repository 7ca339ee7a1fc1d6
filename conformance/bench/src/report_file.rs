//! Reads reports from files.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use super::report_data::{FORMAT, Report};

/// The part that every version of the report format has. It says whether the rest can be read.
#[derive(Deserialize)]
struct Form {
    format: u32,
}

/// # Errors
/// Names the file. A report of a newer format is refused as such.
pub(crate) fn read(path: &Path) -> Result<Report> {
    let shown = path.display();
    let text = fs::read(path).with_context(|| format!("read {shown}"))?;
    let form: Form = serde_json::from_slice(&text)
        .with_context(|| format!("{shown} is not what `conformance bench run --json` writes"))?;
    ensure!(
        form.format <= FORMAT,
        "{shown} has form {}, and this program reads forms up to {FORMAT}: use the one that wrote it, or a newer one",
        form.format
    );
    serde_json::from_slice(&text).with_context(|| format!("read {shown}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_a_later_form_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("later.json");
        fs::write(&path, r#"{"format": 99, "and": "something unheard of"}"#).unwrap();
        let error = format!("{:#}", read(&path).unwrap_err());
        assert!(error.contains("later.json has form 99"), "{error}");
        fs::write(&path, "[]").unwrap();
        let error = format!("{:#}", read(&path).unwrap_err());
        assert!(error.contains("later.json is not what"), "{error}");
    }

    #[test]
    fn a_file_from_before_there_were_timelines_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("earlier.json");
        let text = r#"{
            "format": 1, "made_at": "2026-11-01T00:00:00Z", "setups": [], "series": [], "not_measured": [],
            "machine": {"cpu": "some", "cores": 2, "memory_bytes": 1, "kernel": "6.1", "cgroups": "v1",
                "distribution": "Debian 12", "load_before": "0.1"},
            "settings": {"iterations": 1, "warm_up": 0, "duration_ms": null}
        }"#;
        fs::write(&path, text).unwrap();
        assert_eq!(read(&path).unwrap().timelines, []);
    }
}
