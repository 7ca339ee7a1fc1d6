//! Messages packed as `Any` under the type URLs that shims accept. The `type.googleapis.com/` prefix is left out:
//! containerd 1.6 refuses it.

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{self, CodedOutputStream, Message};
use containerd_shim_protos::shim::oci::Options;

/// Type URL of an exec's process: JSON of the runtime specification.
pub const PROCESS_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
/// Type URL of the options of the runc shims.
pub const RUNC_OPTIONS_URL: &str = "containerd.runc.v1.Options";
/// Type URL of the options of shims that read them from a file, such as gVisor's and Kata's: the type of the file's
/// content, and its path.
pub const RUNTIME_OPTIONS_URL: &str = "runtimeoptions.v1.Options";

/// Packs the runc shims' options.
///
/// # Errors
/// Fails only if protobuf itself can't encode the message.
pub fn runc_options(options: &Options) -> protobuf::Result<Any> {
    Ok(Any { type_url: RUNC_OPTIONS_URL.to_owned(), value: options.write_to_bytes()?, ..Any::default() })
}

/// Packs the options of shims that read them from a file. `type_url` names the type of what is in the file, and
/// `config_path` the file. Either may be empty.
///
/// # Errors
/// Fails only if protobuf itself can't encode the message.
pub fn runtime_options(type_url: &str, config_path: &str) -> protobuf::Result<Any> {
    let mut value = Vec::new();
    let mut stream = CodedOutputStream::vec(&mut value);
    for (field, text) in [(1, type_url), (2, config_path)] {
        if !text.is_empty() {
            stream.write_string(field, text)?;
        }
    }
    stream.flush()?;
    drop(stream);
    Ok(Any { type_url: RUNTIME_OPTIONS_URL.to_owned(), value, ..Any::default() })
}

/// Packs an exec's process, given as JSON.
#[must_use]
pub fn process(json: Vec<u8>) -> Any {
    Any { type_url: PROCESS_URL.to_owned(), value: json, ..Any::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_in_a_file_are_two_texts() {
        let any = runtime_options("io.x.options", "/etc/x.toml").unwrap();
        assert_eq!(any.type_url, "runtimeoptions.v1.Options");
        assert_eq!(any.value, [b"\x0a\x0cio.x.options".as_slice(), b"\x12\x0b/etc/x.toml"].concat());
        assert!(runtime_options("", "").unwrap().value.is_empty());
    }
}
