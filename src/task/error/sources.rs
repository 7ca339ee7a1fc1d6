//! The errors of the modules below that have a source: each with the text that an operator reads, in which every source
//! is printed once.

use std::error::Error as StdError;
use std::io;
use std::iter;
use std::path::PathBuf;

use nix::errno::Errno;
use shim_protos::{BootstrapError, CallError};

use super::{Cause, Error};
use crate::config::{ConfigError, DriverName, TaskOptions};
use crate::devices::DevicesError;
use crate::go_plugin::HandshakeError;
use crate::image::ImageError;
use crate::image::user::UserError;
use crate::image::volumes::VolumesError;
use crate::security::ConfinementError;
use crate::shim::gvisor::FileError;
use crate::sys::error_chain::Chained;
use crate::sys::host_path::HostPathError;
use crate::sys::netns::NetnsError;
use crate::sys::state_lock::StateLockError;
use crate::{cni, containerd, shim};

const FULL: &str = "No space left on device (os error 28)";

fn full() -> io::Error {
    io::Error::from(Errno::ENOSPC)
}

fn path() -> PathBuf {
    "/x".into()
}

fn boxed(error: impl StdError + Send + Sync + 'static) -> Box<dyn StdError + Send + Sync> {
    Box::new(error)
}

/// Returns errors with a source, each with its own text and with its source's.
fn with_source() -> Vec<(Box<dyn StdError + Send + Sync>, &'static str, String)> {
    let full_disk = || FULL.to_owned();
    let unfit = HostPathError::Io { doing: "open", path: path(), source: full() };
    let damaged = ImageError::damaged("layer 1");
    let refused = CallError::Refused("not supported".to_owned());
    let not_toml = "a = = 1".parse::<toml::Table>().unwrap_err();
    let of_toml = not_toml.to_string();
    vec![
        (
            boxed(shim::Error::Call { doing: "create container web".to_owned(), source: refused }),
            "create container web",
            "not supported".to_owned(),
        ),
        (
            boxed(shim::Error::Answer {
                binary: path(),
                id: "web".to_owned(),
                source: BootstrapError::Empty,
            }),
            "the answer of /x start for web can't be used",
            BootstrapError::Empty.to_string(),
        ),
        (boxed(shim::Error::File { doing: "write", path: path(), source: full() }), "write /x", full_disk()),
        (boxed(FileError::NotToml(not_toml)), "it is not TOML", of_toml),
        (
            boxed(StateLockError::Io { doing: "open", path: path(), source: full() }),
            "can't lock the state directory: can't open /x",
            full_disk(),
        ),
        (
            boxed(NetnsError::Io { doing: "create", path: path(), source: full() }),
            "can't create /x",
            full_disk(),
        ),
        (
            boxed(UserError::Io { doing: "mount", path: path(), source: full() }),
            "can't mount the image /x",
            full_disk(),
        ),
        (
            boxed(VolumesError::Full { at: "/x".to_owned(), source: full() }),
            "the disk on which containerd keeps the snapshot for the image's volumes has no room for /x",
            full_disk(),
        ),
        (boxed(ConfinementError::Host { path: path(), source: full() }), "can't read /x", full_disk()),
        (
            boxed(ConfinementError::Profile { option: "seccomp_profile", path: path(), source: unfit }),
            "the option seccomp_profile can't be \"/x\"",
            format!("can't open /x: {FULL}"),
        ),
        (
            boxed(HostPathError::Io { doing: "open", path: path(), source: full() }),
            "can't open /x",
            full_disk(),
        ),
        (boxed(DevicesError::Io { path: path(), source: full() }), "the device /x", full_disk()),
        (
            boxed(cni::Error::Io { doing: "write", path: path(), source: full() }),
            "can't write /x",
            full_disk(),
        ),
        (
            boxed(containerd::Error::Image { doing: "pull a".to_owned(), error: damaged }),
            "pull a",
            "damaged on the way: layer 1".to_owned(),
        ),
        (
            boxed(HandshakeError::Listen { directory: path(), source: full() }),
            "can't listen on a socket under /x",
            full_disk(),
        ),
        (boxed(HandshakeError::Print(full())), "can't print the handshake", full_disk()),
        (boxed(Error::system("look at /x", full())), "look at /x", full_disk()),
    ]
}

#[test]
fn an_errors_own_text_and_its_sources_are_printed_once() {
    for (error, own, source) in with_source() {
        assert_eq!(error.to_string(), own);
        assert!(error.source().is_some(), "{error:?}");
        let cause = Cause::from(error);
        assert_eq!(cause.chain().to_string(), format!("{own}: {source}"));
        let started = Error::Failed(cause).context("run \"sh\"").context("start task web");
        assert_eq!(started.chain().to_string(), format!("start task web: run \"sh\": {own}: {source}"));
    }
}

#[test]
fn no_error_with_a_source_has_its_text_in_its_own() {
    for (error, ..) in with_source() {
        let first: &(dyn StdError + 'static) = &*error;
        for error in iter::successors(Some(first), |&error| error.source()) {
            let source = error.source().map(ToString::to_string);
            assert!(source.is_none_or(|source| !error.to_string().contains(&source)), "{error:?}");
        }
    }
}

#[test]
fn texts_around_another_errors_have_no_source() {
    let error = StateLockError::Unsupported { directory: path(), error: full() };
    assert!(error.source().is_none() && error.to_string().contains(&format!("has no locks ({FULL}); put")));
    let full_directory = Error::from(shim::Error::File { doing: "write", path: path(), source: full() });
    let full_directory = full_directory.while_full(&path());
    let why = "no space left on device: the file system of the state directory /x is full";
    assert_eq!(full_directory.to_string(), format!("write /x: {FULL} ({why})"));
    assert!(full_directory.source().is_none());
}

#[test]
fn a_configuration_that_ends_too_early_is_told_in_one_sentence() {
    let error = TaskOptions::decode(DriverName::ContainerdDriver, &[0x81]).unwrap_err();
    assert!(matches!(&error, ConfigError::Malformed { .. }), "{error:?}");
    let decoder = error.source().unwrap();
    assert_eq!(error.chain().to_string(), format!("the task configuration can't be decoded: {decoder}"));
    assert!(decoder.source().is_some_and(|source| decoder.to_string().contains(&source.to_string())));
}
