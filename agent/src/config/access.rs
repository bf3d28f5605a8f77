//! cloud.toml: how the person at this command line reaches the control plane, and where the keys are.

use std::path::{Path, PathBuf};

use super::document::Document;
use super::read::{Read, keys};
use super::{ConfigErrors, Environment};

/// cloud.toml in the person's configuration folder. What the command line says wins over it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// Address of the control plane.
    pub url: Option<String>,
    /// The authority that signed its certificate; the public ones unless said.
    pub ca: Option<PathBuf>,
    /// File with the person's token.
    pub token_file: Option<PathBuf>,
    /// Folder of secret keys.
    pub keys: PathBuf,
    /// File with the root of trust that the person has pinned.
    pub root: PathBuf,
}

keys! { Access:
    url = optional(),
    ca = optional(),
    token_file = optional(),
    keys = required("\"keys\""),
    root = required("\"root.json\""),
}

impl Access {
    /// Its name in [`Access::folder`].
    pub const FILE: &'static str = "cloud.toml";

    /// `tidegate` in the person's configuration folder.
    pub fn folder(environment: &Environment) -> Option<PathBuf> {
        environment.config_home.as_ref().map(|home| home.join("tidegate"))
    }

    /// Reads cloud.toml; without one nothing is set, and the keys are in `keys`, the root in `root.json`, beside where it would be.
    ///
    /// # Errors
    /// With all that is wrong with the file.
    pub fn load(environment: &Environment) -> Result<Self, ConfigErrors> {
        let folder = Self::folder(environment).unwrap_or_default();
        let file = folder.join(Self::FILE);
        if !file.exists() {
            let (keys, root) = (folder.join("keys"), folder.join("root.json"));
            return Ok(Self { url: None, ca: None, token_file: None, keys, root });
        }
        let mut document = Document::open(&file, "")?;
        if document.has_problems() {
            return document.finish(None);
        }
        let root = document.root.clone();
        let access = Self::read(&with_defaults(root), "", &mut document);
        document.finish(access)
    }

    /// The text of a cloud.toml that says this.
    pub fn text(url: &str, ca: &Path, token_file: &Path) -> String {
        let path = |path: &Path| toml::Value::String(path.display().to_string());
        format!("url = {}\nca = {}\ntoken_file = {}\n", toml::Value::String(url.to_owned()), path(ca), path(token_file))
    }
}

/// Keys and root are beside the file unless it says where.
fn with_defaults(mut root: toml::Value) -> toml::Value {
    if let toml::Value::Table(values) = &mut root {
        for (key, name) in [("keys", "keys"), ("root", "root.json")] {
            values.entry(key).or_insert_with(|| toml::Value::String(name.to_owned()));
        }
    }
    root
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: Option<&str>) -> (tempfile::TempDir, Result<Access, ConfigErrors>) {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("tidegate");
        std::fs::create_dir_all(&folder).unwrap();
        if let Some(text) = text {
            std::fs::write(folder.join(Access::FILE), text).unwrap();
        }
        let environment = Environment { config_home: Some(home.path().to_owned()), ..Environment::default() };
        let access = Access::load(&environment);
        (home, access)
    }

    #[test]
    fn what_is_written_can_be_read() {
        let text = Access::text("https://cloud.example:8443", Path::new("ca.pem"), Path::new("/etc/token"));
        let (home, access) = load(Some(&text));
        let (access, folder) = (access.unwrap(), home.path().join("tidegate"));
        assert_eq!(access.url.as_deref(), Some("https://cloud.example:8443"));
        assert_eq!(access.ca, Some(folder.join("ca.pem")));
        assert_eq!(access.token_file, Some("/etc/token".into()));
        assert_eq!((access.keys, access.root), (folder.join("keys"), folder.join("root.json")));
    }

    #[test]
    fn without_a_file_the_keys_are_where_it_would_be() {
        let (home, access) = load(None);
        let access = access.unwrap();
        assert_eq!(access.keys, home.path().join("tidegate/keys"));
        assert_eq!(access.root, home.path().join("tidegate/root.json"));
    }

    #[test]
    fn a_mistake_is_told_with_its_place() {
        let errors = load(Some("token_fil = \"x\"\n")).1.unwrap_err();
        assert!(
            errors
                .to_string()
                .contains("cloud.toml:1:1: token_fil: unknown key `token_fil` (hint: did you mean `token_file`?)"),
            "{errors}"
        );
    }
}
