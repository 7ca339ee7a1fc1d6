//! Options for the collection of orphans.

use harness::context::CaseContext;
use serde_json::{Value, json};

/// Returns options for the collection of orphans with a grace of a second, unless `more` says otherwise.
pub fn options(case: &CaseContext, more: &Value) -> Value {
    let mut block = json!({"period": "200ms", "creation_grace": "1s"});
    for (name, value) in more.as_object().into_iter().flatten() {
        block[name] = value.clone();
    }
    let mut options = case.options();
    options["gc"] = json!({"dangling_containers": block});
    options
}
