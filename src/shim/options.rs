//! The options of a shim's Create, in the form that the shim's family documents.

use std::path::{Path, PathBuf};

use shim_protos::protobuf::well_known_types::any::Any;
use shim_protos::{CallError, RuncOptions, any};

use super::{Bundle, Error, GVISOR_OPTIONS_TYPE};

/// The options of one container.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum CreateOptions {
    /// No options, so that the shim's own defaults hold.
    None,
    Runc(Box<RuncOptions>),
    /// A file of the operator's, and the type of the options in it.
    File {
        type_url: String,
        path: PathBuf,
    },
    /// The options of gVisor's shim in TOML, and the name of the `runsc` to run, which are both written to files in the
    /// bundle.
    Gvisor {
        text: String,
        program: String,
    },
}

impl CreateOptions {
    /// Returns the `runsc` that a shim of gVisor's is to run. `None` for any other shim.
    pub(crate) fn runsc(&self) -> Option<&str> {
        match self {
            Self::Gvisor { program, .. } => Some(program),
            Self::None | Self::Runc(_) | Self::File { .. } => None,
        }
    }

    /// Packs the options for a Create, and writes those that are to be in the bundle.
    ///
    /// # Errors
    /// Names the file that can't be written.
    pub(super) fn pack(&self, bundle: &Bundle) -> Result<Option<Any>, Error> {
        let in_file =
            |type_url: &str, path: &Path| any::runtime_options(type_url, &path.display().to_string());
        let packed = match self {
            Self::None => return Ok(None),
            Self::Runc(options) => any::runc_options(options),
            Self::File { type_url, path } => in_file(type_url, path),
            Self::Gvisor { text, program } => {
                in_file(GVISOR_OPTIONS_TYPE, &bundle.write_gvisor_options(text, program)?)
            }
        };
        packed.map(Some).map_err(|error| Error::Call {
            doing: "encode the options of the shim".to_owned(),
            source: CallError::Refused(error.to_string()),
        })
    }
}
