//! Files that a function may read: its layers at `/opt`, the folders of sources that it is granted at `/mnt/NAME`. Named as in
//! `std::fs`, which has no files in a function.

use crate::failure::Failure;
use crate::host;

/// The whole of a file.
///
/// # Errors
/// [`Failure::Reject`] when there is no such file, or none that the function may read; [`Failure::Retry`] when it cannot be read now.
pub fn read(path: &str) -> Result<Vec<u8>, Failure> {
    host::read_file(path).map_err(|failure| failure.about(format_args!("file `{path}`")))
}

/// The whole of a file, as UTF-8.
///
/// # Errors
/// As [`read`]; [`Failure::Reject`] when it is no text.
pub fn read_to_string(path: &str) -> Result<String, Failure> {
    let text = String::from_utf8(read(path)?);
    text.map_err(|error| Failure::reject(format_args!("file `{path}` is not text: {}", error.utf8_error())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Host;

    #[test]
    fn a_file_is_read_whole_and_what_is_wrong_names_it() {
        let mut host = Host::new().with_file("/mnt/inbox/a.csv", "fish,4\n").with_file("/opt/table", [0xff, 0]);
        assert_eq!(host.run(|| read_to_string("/mnt/inbox/a.csv")).unwrap(), "fish,4\n");
        assert_eq!(host.run(|| read("/opt/table")).unwrap(), [0xff, 0]);
        for (path, why) in [
            ("/opt/table", "file `/opt/table` is not text: invalid utf-8 sequence of 1 bytes from index 0"),
            ("/opt/chair", "file `/opt/chair`: there is no such file"),
        ] {
            assert_eq!(host.run(|| read_to_string(path)), Err(Failure::reject(why)));
        }
    }
}
