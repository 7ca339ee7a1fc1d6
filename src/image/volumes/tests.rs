//! Volumes of images whose files are in a temporary directory.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};

use rustix::fs::XattrFlags;
use serde_json::json;

use super::*;
use crate::sys::error_chain::Chained;

fn config(volumes: &serde_json::Value) -> ImageConfiguration {
    let text = json!({"config": {"volumes": volumes}}).to_string();
    crate::image::manifest::read_config(text.as_bytes(), &oci_spec::image::Arch::Amd64).unwrap()
}

fn declared(volumes: &[&str]) -> Result<Vec<String>, String> {
    let volumes: serde_json::Map<_, _> = volumes.iter().map(|path| ((*path).to_owned(), json!({}))).collect();
    paths(&config(&volumes.into())).map_err(|error| error.to_string())
}

#[test]
fn paths_are_absolute_and_in_their_shortest_form() {
    for (path, expected) in [
        ("/data", "/data"),
        ("/data/", "/data"),
        ("data", "/data"),
        ("//var/./lib/../lib/db", "/var/lib/db"),
        ("../../etc", "/etc"),
        ("/ /x", "/ /x"),
        ("/processes", "/processes"),
    ] {
        assert_eq!(declared(&[path]).unwrap(), [expected], "{path}");
    }
    let several = declared(&["/b/c/d", "/b/../a", "/b", "/a/", "/b-c"]).unwrap();
    assert_eq!(several, ["/a", "/b", "/b-c", "/b/c/d"]);
    assert_eq!(
        declared(&["/dev", "/x", "/sys/fs/cgroup", "/a/../dev/null", "/dev/shm", "/devices"]).unwrap(),
        ["/devices", "/x", "/dev/shm"]
    );
    for none in [json!(null), json!({})] {
        assert!(paths(&config(&none)).unwrap().is_empty());
    }
    assert_eq!(paths(&config(&json!({"/data": null}))).unwrap(), ["/data"]);
}

#[test]
fn paths_where_no_volume_can_be_are_refused() {
    for (path, why) in [
        ("/", "root directory"),
        ("", "root directory"),
        ("/../..", "root directory"),
        ("/proc", "/proc"),
        ("x/../proc/self/fd", "/proc"),
        ("/a\0b", "NUL"),
        (&"x/".repeat(4000), "too long"),
    ] {
        let error = declared(&[path]).unwrap_err();
        assert!(error.contains(why) && error.contains("image_volumes") && error.len() < 500, "{error}");
    }
    let many: Vec<_> = (0..=VOLUMES_LIMIT).map(|number| format!("/v{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert!(declared(&many[..VOLUMES_LIMIT]).is_ok());
    assert!(declared(&many).unwrap_err().contains("257 volumes"));
}

/// Makes the volumes of an image that `make` has filled; returns the directory with `image` and `volumes` in it.
fn filled(paths: &[&str], make: impl FnOnce(&Path)) -> (tempfile::TempDir, Result<(), String>) {
    let directory = tempfile::tempdir().unwrap();
    let [image, volumes] = ["image", "volumes"].map(|name| directory.path().join(name));
    fs::create_dir(&image).unwrap();
    fs::create_dir(&volumes).unwrap();
    make(&image);
    let wanted: Vec<_> = paths.iter().map(|path| of_image(path)).collect();
    let outcome = made_in(directory.path(), &wanted);
    (directory, outcome.map_err(|error| error.chain().to_string()))
}

fn of_image(path: &str) -> Wanted {
    Wanted { path: path.to_owned(), is_filled: true, is_jobs: false }
}

fn made_in(directory: &Path, wanted: &[Wanted]) -> Result<(), VolumesError> {
    let open = |name: &str| open_directory(&directory.join(name)).unwrap();
    fill(&open("image"), &open("volumes"), wanted, &AtomicBool::new(false))
}

#[test]
fn a_volume_of_a_job_is_filled_if_it_says_so_and_refused_with_its_own_way_out() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir_all(directory.path().join("image/data/below")).unwrap();
    fs::write(directory.path().join("image/file"), "").unwrap();
    fs::create_dir(directory.path().join("volumes")).unwrap();
    let of_job = |path: &str, is_filled| Wanted { path: path.to_owned(), is_filled, is_jobs: true };
    let refused = made_in(directory.path(), &[of_job("/file", true)]).unwrap_err().to_string();
    assert!(refused.contains("/file") && refused.contains("no_copy = true"), "{refused}");
    made_in(directory.path(), &[of_job("/data", true), of_job("/data/below", false), of_job("/file", false)])
        .unwrap();
    let count = |number: &str| fs::read_dir(directory.path().join("volumes").join(number)).unwrap().count();
    assert_eq!(["0", "1", "2"].map(count), [1, 0, 0]);
    assert_eq!(mode(&directory.path().join("volumes/1")), 0o755);
}

#[test]
fn links_lead_no_volume_to_the_kernels_file_systems() {
    for (target, path, is_refused) in [
        ("/proc", "/x", true),
        ("../proc", "/x/self", true),
        ("/", "/x", true),
        (".", "/x/dev/y", true),
        ("/sys", "/x", true),
        ("/dev", "/x/new", true),
        ("/nowhere", "/x", false),
        ("/data", "/x/new", false),
    ] {
        let (_directory, outcome) = filled(&[path], |image| {
            for name in ["proc", "sys", "dev", "data"] {
                fs::create_dir(image.join(name)).unwrap();
            }
            symlink(target, image.join("x")).unwrap();
        });
        match outcome {
            Err(error) => assert!(is_refused && error.contains("links of the image"), "{target}: {error}"),
            Ok(()) => assert!(!is_refused, "{target}"),
        }
    }
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_volume_has_what_the_image_has_there() {
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let is_root = nix::unistd::geteuid().is_root();
    let (directory, outcome) = filled(&["/data"], |image| {
        let data = image.join("data");
        fs::create_dir_all(data.join("sub/deep")).unwrap();
        fs::write(data.join("file"), "content").unwrap();
        fs::hard_link(data.join("file"), data.join("sub/again")).unwrap();
        symlink("/etc/passwd", data.join("link")).unwrap();
        symlink("nowhere", data.join("sub/dangling")).unwrap();
        nix::unistd::mkfifo(&data.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let holes = fs::File::create(data.join("holes")).unwrap();
        holes.set_len(64 << 20).unwrap();
        std::os::unix::fs::FileExt::write_at(&holes, b"end", (64 << 20) - 3).unwrap();
        fs::write(data.join("program"), "#!").unwrap();
        if is_root {
            std::os::unix::fs::chown(data.join("program"), Some(1234), Some(5678)).unwrap();
            std::os::unix::fs::lchown(data.join("link"), Some(1234), Some(5678)).unwrap();
            std::os::unix::fs::chown(&data, Some(999), Some(998)).unwrap();
            let program = fs::File::open(data.join("program")).unwrap();
            rustix::fs::fsetxattr(&program, "security.capability", &capability, XattrFlags::empty()).unwrap();
        }
        fs::set_permissions(data.join("program"), fs::Permissions::from_mode(0o6751)).unwrap();
        fs::set_permissions(data.join("sub"), fs::Permissions::from_mode(0o1777)).unwrap();
        fs::set_permissions(&data, fs::Permissions::from_mode(0o700)).unwrap();
        let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        for path in ["file", "sub", "."] {
            fs::File::open(data.join(path)).unwrap().set_modified(old).unwrap();
        }
    });
    outcome.unwrap();
    let [from, to] = ["image/data", "volumes/0"].map(|path| directory.path().join(path));
    assert_eq!((mode(&to), mode(&to.join("sub")), mode(&to.join("program"))), (0o700, 0o1777, 0o6751));
    assert_eq!(fs::read(to.join("file")).unwrap(), b"content");
    assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("/etc/passwd"));
    assert_eq!(fs::read_link(to.join("sub/dangling")).unwrap(), Path::new("nowhere"));
    assert!(fs::symlink_metadata(to.join("pipe")).unwrap().file_type().is_fifo());
    let look = |path: &str| fs::metadata(to.join(path)).unwrap();
    assert_eq!((look("file").ino(), look("file").nlink()), (look("sub/again").ino(), 2));
    assert_eq!(look("holes").len(), 64 << 20);
    assert!(look("holes").blocks() * 512 < 1 << 20, "the holes are filled");
    assert!(fs::read(to.join("holes")).unwrap().ends_with(b"end"));
    for path in ["file", "sub", "sub/deep", ".", "program", "link", "pipe"] {
        let [from, to] = [&from, &to].map(|root| fs::symlink_metadata(root.join(path)).unwrap());
        let facts = |of: &fs::Metadata| (of.uid(), of.gid(), of.mode(), of.mtime(), of.mtime_nsec());
        assert_eq!(facts(&from), facts(&to), "{path}");
    }
    if is_root {
        let program = fs::File::open(to.join("program")).unwrap();
        let mut value = Vec::with_capacity(64);
        let spare = rustix::buffer::spare_capacity(&mut value);
        rustix::fs::fgetxattr(&program, "security.capability", spare).unwrap();
        assert_eq!(value, capability);
    }
}

#[test]
fn a_volume_at_a_path_that_the_image_lacks_is_empty() {
    let (directory, outcome) = filled(&["/data", "/link/x"], |image| {
        symlink("../../../../..", image.join("link")).unwrap();
    });
    outcome.unwrap();
    for number in ["0", "1"] {
        let volume = directory.path().join("volumes").join(number);
        assert_eq!((mode(&volume), fs::read_dir(&volume).unwrap().count()), (0o755, 0));
    }
}

#[test]
fn links_do_not_lead_out_of_the_image() {
    let (directory, outcome) = filled(&["/absolute", "/up/inside"], |image| {
        fs::create_dir(image.join("inside")).unwrap();
        fs::write(image.join("inside/file"), "inside").unwrap();
        fs::create_dir(image.parent().unwrap().join("outside")).unwrap();
        fs::write(image.parent().unwrap().join("outside/file"), "secret").unwrap();
        symlink("/inside/../../outside/../../../inside", image.join("absolute")).unwrap();
        fs::create_dir(image.join("outside")).unwrap();
        symlink("../../..", image.join("up")).unwrap();
    });
    outcome.unwrap();
    let volume = |number: &str| directory.path().join("volumes").join(number);
    // Both lead to one directory, where the second is mounted over the first.
    assert_eq!(fs::read_dir(volume("0")).unwrap().count(), 0);
    assert_eq!(fs::read(volume("1").join("file")).unwrap(), b"inside");
}

#[test]
fn what_is_in_another_volume_is_copied_once() {
    let (directory, outcome) = filled(&["/data", "/data/db", "/data/db/log"], |image| {
        fs::create_dir_all(image.join("data/db/log")).unwrap();
        fs::set_permissions(image.join("data/db"), fs::Permissions::from_mode(0o711)).unwrap();
        for path in ["data/a", "data/db/b", "data/db/log/c"] {
            fs::write(image.join(path), path).unwrap();
        }
    });
    outcome.unwrap();
    let list = |path: &str| {
        let entries = fs::read_dir(directory.path().join("volumes").join(path)).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(
        (list("0"), list("1"), list("2")),
        (vec!["a".into(), "db".into()], vec!["b".into(), "log".into()], vec!["c".to_owned()])
    );
    assert!(list("0/db").is_empty() && list("1/log").is_empty());
    assert_eq!(mode(&directory.path().join("volumes/0/db")), 0o711);
}

#[test]
fn a_file_in_the_place_of_a_volume_is_refused() {
    let make = |image: &Path| {
        fs::write(image.join("file"), "").unwrap();
        symlink("file", image.join("link")).unwrap();
        symlink("loop", image.join("loop")).unwrap();
    };
    for (path, why) in [("/file", "a file"), ("/link", "a file"), ("/file/x", "a file"), ("/loop", "a loop")]
    {
        let error = filled(&[path], make).1.unwrap_err();
        assert!(error.contains(path) && error.contains(why) && error.contains("image_volumes"), "{error}");
    }
}

#[test]
fn a_deep_tree_takes_no_stack_and_few_descriptors() {
    let depth = 1500;
    let (directory, outcome) = filled(&["/d"], |image| {
        let path: PathBuf = std::iter::repeat_n("d", depth).collect();
        fs::create_dir_all(image.join(path)).unwrap();
    });
    outcome.unwrap();
    let copied: PathBuf = std::iter::repeat_n("d", depth - 1).collect();
    assert!(directory.path().join("volumes/0").join(copied).is_dir());
}

#[test]
fn want_of_room_is_told_as_that() {
    let full = || io::Error::from(Errno::ENOSPC);
    let copy =
        |source| VolumesError::Copy { path: "/data".to_owned(), doing: "write", at: "a".into(), source };
    let made = |source| VolumesError::Io { doing: "make", at: "/data".into(), source };
    for error in [copy(full()), made(full()), copy(Errno::EDQUOT.into())] {
        let error = without_room(error);
        assert!(matches!(error, VolumesError::Full { .. }), "{error:?}");
        let text = error.chain().to_string();
        assert!(text.contains("has no room for /data: ") && text.contains("os error"), "{text}");
    }
    assert!(matches!(without_room(copy(Errno::EACCES.into())), VolumesError::Copy { .. }));
}

#[test]
fn a_filling_that_was_cancelled_mounts_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let at = || directory.path().to_owned();
    let absent = Mount { r#type: "absent".to_owned(), ..Mount::default() };
    let filling = Filling {
        image: vec![absent.clone()],
        image_at: at(),
        snapshot: vec![absent],
        at: at(),
        wanted: vec![of_image("/data")],
    };
    assert!(matches!(filling.run(&AtomicBool::new(true)), Err(VolumesError::Cancelled)));
    assert!(matches!(filling.run(&AtomicBool::new(false)), Err(VolumesError::Io { doing: "mount", .. })));
}

#[test]
fn a_copy_stops_when_it_is_told_to() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir_all(directory.path().join("image/data")).unwrap();
    fs::create_dir(directory.path().join("volumes")).unwrap();
    let open = |name: &str| open_directory(&directory.path().join(name)).unwrap();
    let outcome = fill(&open("image"), &open("volumes"), &[of_image("/data")], &AtomicBool::new(true));
    assert!(matches!(outcome, Err(VolumesError::Cancelled)));
}
