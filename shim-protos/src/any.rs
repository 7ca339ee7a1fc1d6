//! Messages packed as `Any` under the type URLs that shims accept. The `type.googleapis.com/` prefix is left out:
//! containerd 1.6 refuses it.

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{self, Message};
use containerd_shim_protos::shim::oci::Options;

/// An exec's process: JSON of the runtime specification.
pub const PROCESS_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
/// The options of the runc shims.
pub const RUNC_OPTIONS_URL: &str = "containerd.runc.v1.Options";

/// Packs the runc shims' options.
///
/// # Errors
/// Fails only where protobuf itself can't encode the message.
pub fn runc_options(options: &Options) -> protobuf::Result<Any> {
    Ok(Any { type_url: RUNC_OPTIONS_URL.to_owned(), value: options.write_to_bytes()?, ..Any::default() })
}

/// Packs an exec's process, given as JSON.
#[must_use]
pub fn process(json: Vec<u8>) -> Any {
    Any { type_url: PROCESS_URL.to_owned(), value: json, ..Any::default() }
}
