//! Small files by which a trigger knows after a restart where it was: one line each, whole when it ends with a line break. A new one is on
//! disk before it takes the place of the old one.

use std::io;
use std::path::Path;

use tokio::fs;
use tokio::io::AsyncWriteExt as _;

/// What `file` holds: `None` when there is none, an error when it is damaged too.
pub(super) async fn read(file: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(file).await {
        Ok(text) => match text.strip_suffix('\n') {
            Some(line) => Ok(Some(line.to_owned())),
            None => Err(io::ErrorKind::InvalidData.into()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Has `file` hold `line`, over a power cut too.
pub(super) async fn write(file: &Path, line: &str) -> io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).await?;
    let mut new = file.to_owned();
    new.as_mut_os_string().push(".new");
    let mut out = fs::File::create(&new).await?;
    out.write_all(format!("{line}\n").as_bytes()).await?;
    out.sync_all().await?;
    fs::rename(&new, file).await?;
    fs::File::open(folder).await?.sync_all().await
}
