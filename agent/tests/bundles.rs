//! Bundle files: what is packed comes back, and what does not belong into one never reaches the disk.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use tidegate::limits::Limits;
use tidegate::store::{Bundle, pack};
use tidegate::units::ByteSize;

const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";
const MANIFEST: &str = "name = \"f\"\nversion = \"1.0.0\"\nruntime = \"wasm\"\ncomponent = \"f.wasm\"\n";

/// A bundle file with these entries, written as they are.
fn archive(dir: &Path, entries: &[(&str, tar::EntryType, &[u8])]) -> PathBuf {
    let file = dir.join("f.tar.zst");
    let mut builder = tar::Builder::new(zstd::Encoder::new(fs::File::create(&file).unwrap(), 1).unwrap());
    for (name, kind, content) in entries {
        let mut header = tar::Header::new_gnu();
        // Not `set_path`, which would refuse what an attacker writes.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o777);
        if kind.is_symlink() || kind.is_hard_link() {
            header.set_link_name("/etc/passwd").unwrap();
        }
        header.set_cksum();
        builder.append(&header, *content).unwrap();
    }
    builder.into_inner().unwrap().finish().unwrap().flush().unwrap();
    file
}

/// Why a bundle file is refused, with all causes, and nothing of it stays.
#[track_caller]
fn check_refused(entries: &[(&str, tar::EntryType, &[u8])], limits: &Limits, expected: &str) {
    let dir = tempfile::tempdir().unwrap();
    let file = archive(dir.path(), entries);
    let state = dir.path().join("state");
    let error = anyhow::Error::from(Bundle::open(&file, &state, limits).unwrap_err());
    let shown = format!("{error:#}").replace(&dir.path().display().to_string(), "DIR");
    assert_eq!(shown, format!("cannot unpack bundle `DIR/f.tar.zst`: {expected}"));
    assert_eq!(fs::read_dir(state.join("bundles")).unwrap().count(), 0, "something stayed");
    assert!(!dir.path().join("evil").exists());
}

const FILE: tar::EntryType = tar::EntryType::Regular;

#[test]
fn nothing_is_written_outside_of_the_bundle() {
    let limits = Limits::default();
    check_refused(&[("../evil", FILE, b"x")], &limits, "entry `../evil` is outside of the bundle");
    check_refused(&[("/evil", FILE, b"x")], &limits, "entry `/evil` is outside of the bundle");
    check_refused(&[("a/../../evil", FILE, b"x")], &limits, "entry `a/../../evil` is outside of the bundle");
}

#[test]
fn only_files_and_folders_are_unpacked() {
    let limits = Limits::default();
    for kind in [tar::EntryType::Symlink, tar::EntryType::Link, tar::EntryType::Char, tar::EntryType::Fifo] {
        check_refused(&[("evil", kind, b"")], &limits, "entry `evil` is neither a file nor a folder");
    }
    check_refused(&[("a", FILE, b"1"), ("a", FILE, b"2")], &limits, "entry `a` is in it twice");
}

#[test]
fn a_small_archive_cannot_fill_the_disk() {
    let zeros = vec![0; 3 << 20];
    let limits = Limits { bundle_bytes_max: ByteSize::mib(2), bundle_entries_max: 3, ..Limits::default() };
    check_refused(&[("zeros", FILE, &zeros)], &limits, "it unpacks to more than 2 MiB");
    let many = [("a", FILE, b"".as_slice()), ("b", FILE, b""), ("c", FILE, b""), ("d", FILE, b"")];
    check_refused(&many, &limits, "it has more than 3 files and folders");
}

#[test]
fn a_file_that_is_no_archive_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f.tar.zst");
    fs::write(&file, "hello").unwrap();
    let error = Bundle::open(&file, &dir.path().join("state"), &Limits::default()).unwrap_err();
    assert_eq!(error.hint(), "make it again with `tidegate build`");
}

#[test]
fn a_packed_bundle_comes_back_without_its_sources() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("f");
    for (name, content) in [
        ("function.toml", MANIFEST.as_bytes()),
        ("f.wasm", COMPONENT),
        ("data/table.csv", b"1,2"),
        ("src/lib.rs", b"fn main() {}"),
        ("Cargo.toml", b"[package]"),
        (".git/config", b"x"),
        ("f-0.9.0.tar.zst", b"x"),
    ] {
        fs::create_dir_all(folder.join(name).parent().unwrap()).unwrap();
        fs::write(folder.join(name), content).unwrap();
    }
    let (first, second) = (folder.join("f-1.0.0.tar.zst"), dir.path().join("again.tar.zst"));
    pack(&folder, &first).unwrap();
    pack(&folder, &second).unwrap();
    assert_eq!(fs::read(&first).unwrap(), fs::read(&second).unwrap(), "the same files make the same bundle");

    let state = dir.path().join("state");
    let bundle = Bundle::open(&first, &state, &Limits::default()).unwrap();
    assert_eq!(bundle.manifest.name.as_str(), "f");
    assert_eq!(fs::read(bundle.root.join("data/table.csv")).unwrap(), b"1,2");
    assert!(!bundle.root.join("src").exists() && !bundle.root.join(".git").exists());
    assert!(!bundle.root.join("f-0.9.0.tar.zst").exists());

    // The second time it is there already.
    let again = Bundle::open(&first, &state, &Limits::default()).unwrap();
    assert_eq!(again.root, bundle.root);
}
