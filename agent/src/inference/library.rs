//! Where ONNX Runtime's library may be.

use std::path::{Path, PathBuf};

/// What the name of the library starts with; a version may follow.
const NAME: &str = "libonnxruntime.so";

/// The folders of our tarball and of our package. The loader does not know them, so that no other program gets this library.
const PACKAGED: [&str; 2] = ["usr/local/lib/tidegate", "usr/lib/tidegate"];

/// The libraries that were found, best first, and the folders that were looked in.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Search {
    pub(super) found: Vec<PathBuf>,
    pub(super) looked_in: Vec<String>,
}

impl Search {
    /// Looks beside the program, where our packages put it, then where the system's loader would. `root` is `/`.
    pub(super) fn run(beside: Option<&Path>, root: &Path) -> Self {
        let mut search = Self::default();
        let ours = PACKAGED.map(|folder| root.join(folder));
        for folder in beside.map(Path::to_path_buf).into_iter().chain(ours).chain(loader_folders(root)) {
            let name = folder.display().to_string();
            if !search.looked_in.contains(&name) {
                search.found.extend(libraries_in(&folder));
                search.looked_in.push(name);
            }
        }
        search
    }
}

/// The folders of the dynamic loader's configuration, then its built-in ones. The loader's own search would also follow
/// `LD_LIBRARY_PATH`; which library runs the models must not depend on the shell that started the agent.
fn loader_folders(root: &Path) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    read_loader_config(root, &root.join("etc/ld.so.conf"), 0, &mut folders);
    folders.extend(["usr/local/lib", "lib64", "usr/lib64", "lib", "usr/lib"].map(|folder| root.join(folder)));
    folders
}

fn read_loader_config(root: &Path, file: &Path, depth: u8, folders: &mut Vec<PathBuf>) {
    const DEPTH_MAX: u8 = 4;
    let Ok(text) = std::fs::read_to_string(file) else { return };
    for line in text.lines().map(|line| line.split('#').next().unwrap_or_default().trim()) {
        match line.strip_prefix("include").filter(|rest| rest.starts_with(char::is_whitespace)) {
            Some(pattern) if depth < DEPTH_MAX => {
                for file in matching(&root.join(pattern.trim().trim_start_matches('/'))) {
                    read_loader_config(root, &file, depth + 1, folders);
                }
            }
            None if line.starts_with('/') => folders.push(root.join(line.trim_start_matches('/'))),
            _ => {}
        }
    }
}

/// The files that a pattern with one `*` in its last part stands for, in order.
fn matching(pattern: &Path) -> Vec<PathBuf> {
    let (Some(folder), Some(name)) = (pattern.parent(), pattern.file_name().and_then(|name| name.to_str())) else {
        return Vec::new();
    };
    let Some((start, end)) = name.split_once('*') else { return vec![pattern.to_path_buf()] };
    names_in(folder)
        .into_iter()
        .filter(|name| name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end))
        .map(|name| folder.join(name))
        .collect()
}

/// The plain name first, which is what an administrator points at the wanted version, then the newest version.
fn libraries_in(folder: &Path) -> Vec<PathBuf> {
    let mut names: Vec<_> = names_in(folder)
        .into_iter()
        .filter(|name| name.strip_prefix(NAME).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
        .collect();
    names.sort_by_key(|name| std::cmp::Reverse(version(name).map_or(vec![u64::MAX], numbers)));
    names.into_iter().map(|name| folder.join(name)).collect()
}

/// `1.24.1` of `libonnxruntime.so.1.24.1`.
fn version(file_name: &str) -> Option<&str> {
    file_name.strip_prefix(NAME)?.strip_prefix('.')
}

fn numbers(version: &str) -> Vec<u64> {
    version.split('.').map(|part| part.parse().unwrap_or(0)).collect()
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_beside_the_program_comes_before_the_systems_and_the_newest_of_a_folder_first() {
        let root = tempfile::tempdir().unwrap();
        let put = |file: &str, text: &str| {
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        put("etc/ld.so.conf", "include /etc/ld.so.conf.d/*.conf # the usual\n");
        put("etc/ld.so.conf.d/vendor.conf", "# vendor\n/opt/vendor\n");
        put("etc/ld.so.conf.d/readme.txt", "/opt/not-this\n");
        put("opt/vendor/libonnxruntime.so.1.9.0", "");
        put("opt/vendor/libonnxruntime.so.1.24.1", "");
        put("opt/vendor/libonnxruntime_providers_shared.so", "");
        put("opt/not-this/libonnxruntime.so", "");
        put("usr/lib/libonnxruntime.so.1.30.0", "");
        put("opt/tidegate/libonnxruntime.so", "");
        put("usr/lib/tidegate/libonnxruntime.so", "");

        let beside = root.path().join("opt/tidegate");
        let search = Search::run(Some(&beside), root.path());
        let relative: Vec<_> = search.found.iter().map(|path| path.strip_prefix(root.path()).unwrap()).collect();
        let wanted = [
            "opt/tidegate/libonnxruntime.so",
            "usr/lib/tidegate/libonnxruntime.so",
            "opt/vendor/libonnxruntime.so.1.24.1",
            "opt/vendor/libonnxruntime.so.1.9.0",
            "usr/lib/libonnxruntime.so.1.30.0",
        ];
        assert_eq!(relative, wanted.map(Path::new));
        assert_eq!(search.looked_in[0], beside.display().to_string());
        assert_eq!(search.looked_in[3], root.path().join("opt/vendor").display().to_string());
    }

    #[test]
    fn a_machine_without_loader_configuration_is_searched_too() {
        let root = tempfile::tempdir().unwrap();
        let search = Search::run(None, root.path());
        assert_eq!(search.found, [] as [PathBuf; 0]);
        assert_eq!(search.looked_in.len(), 7);
    }
}
