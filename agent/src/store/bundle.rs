//! One bundle: a folder with `function.toml` and the code, or a `.tar.zst` of it.

use std::fs;
use std::io::Read;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::layers::LayerError;
use super::unpack::{self, UnpackError};
use crate::config::{
    ConfigErrors, Document, FunctionSettings, Manifest, Names, TriggerKind, check_settings, check_test, read_manifest,
};
use crate::limits::Limits;
use crate::units::ByteSize;

/// The manifest's name in each bundle.
pub const MANIFEST: &str = "function.toml";

/// Why a bundle cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// Nothing there.
    #[error("there is no bundle `{0}`")]
    Missing(PathBuf),
    /// Neither a folder nor a bundle file.
    #[error("`{0}` is neither a folder nor a `.tar.zst` file")]
    Kind(PathBuf),
    /// The bundle file is malformed, or there is no room for it.
    #[error("cannot unpack bundle `{0}`")]
    Unpack(PathBuf, #[source] UnpackError),
    /// The layers beside it.
    #[error(transparent)]
    Layers(LayerError),
    /// What function.toml says is wrong.
    #[error(transparent)]
    Manifest(#[from] ConfigErrors),
}

impl BundleError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Missing(path) => format!(
                "correct the path, or make it with `tidegate build` (`tidegate new {}` starts one)",
                path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy()
            ),
            Self::Kind(_) => "name the folder that holds function.toml, or what `tidegate build` made of it".to_owned(),
            Self::Unpack(..) => "make it again with `tidegate build`".to_owned(),
            Self::Layers(error) => error.hint().to_owned(),
            Self::Manifest(_) => "correct function.toml".to_owned(),
        }
    }
}

/// A bundle whose manifest was checked.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// Folder of the bundle, absolute.
    pub root: PathBuf,
    /// What it declares.
    pub manifest: Manifest,
    /// The component's file.
    pub component: PathBuf,
    /// SHA-256 of the component, lower-case hexadecimal.
    pub digest: Arc<str>,
}

impl Bundle {
    /// Opens the bundle at `path`; a bundle file is unpacked to `state_dir/bundles` first.
    ///
    /// # Errors
    /// When there is none, or with all that is wrong with its manifest.
    pub fn open(path: &Path, state_dir: &Path, limits: &Limits) -> Result<Self, BundleError> {
        Self::open_for(path, state_dir, limits, &FunctionSettings::default(), &Names::any())
    }

    /// Opens the bundle for a gateway that overrides some of its settings and knows `names`.
    pub(super) fn open_for(
        path: &Path,
        state_dir: &Path,
        limits: &Limits,
        overridden: &FunctionSettings,
        names: &Names,
    ) -> Result<Self, BundleError> {
        let metadata = fs::metadata(path).map_err(|_| BundleError::Missing(path.to_owned()))?;
        let root = if metadata.is_dir() {
            path.to_owned()
        } else if path.to_string_lossy().ends_with(".tar.zst") {
            unpack::unpack(path, &state_dir.join("bundles"), limits)
                .map_err(|error| BundleError::Unpack(path.to_owned(), error))?
        } else {
            return Err(BundleError::Kind(path.to_owned()));
        };
        let root = std::path::absolute(&root).unwrap_or(root);
        let mut document = Document::open(&root.join(MANIFEST), "a bundle is a folder with a function.toml in it")?;
        let manifest = read_manifest(&mut document).filter(|manifest| {
            let effective = manifest.settings.without(overridden);
            check_settings(&effective, "", names, limits, &mut document);
            check_urls(&effective, &mut document);
            true
        });
        let component = manifest.as_ref().and_then(|manifest| check_files(manifest, &root, limits, &mut document));
        let digest = component.as_deref().and_then(|file| match super::digest_file(file) {
            Ok(digest) => Some(Arc::from(digest)),
            Err(error) => {
                document.refuse("component", format!("it cannot be read: {error}"), "let the agent's user read it");
                None
            }
        });
        let bundle = manifest.zip(component).zip(digest);
        let bundle = bundle.map(|((manifest, component), digest)| Self { root, manifest, component, digest });
        Ok(document.finish(bundle)?)
    }
}

/// Reads the manifest of the bundle folder `root` without looking at the component, which may not be built yet.
///
/// # Errors
/// With all that is wrong with it.
pub fn read_manifest_of(root: &Path, limits: &Limits) -> Result<Manifest, ConfigErrors> {
    let file = std::path::absolute(root).unwrap_or_else(|_| root.to_owned()).join(MANIFEST);
    let mut document =
        Document::open(&file, "a function is a folder with a function.toml in it: `tidegate new` makes one")?;
    let manifest = read_manifest(&mut document);
    if let Some(manifest) = &manifest {
        check_settings(&manifest.settings, "", &Names::any(), limits, &mut document);
        check_urls(&manifest.settings, &mut document);
    }
    document.finish(manifest)
}

/// Reports what a bundle says of who may call it.
fn check_urls(settings: &FunctionSettings, document: &mut Document) {
    for (i, trigger) in settings.trigger.iter().flatten().enumerate() {
        if let TriggerKind::Http(http) = &trigger.kind {
            http.check_in_bundle(&format!("trigger[{i}].http"), document);
        }
    }
}

/// The component, when it and all other files that the manifest names are what they should be.
fn check_files(manifest: &Manifest, root: &Path, limits: &Limits, document: &mut Document) -> Option<PathBuf> {
    for (i, test) in manifest.test.iter().enumerate() {
        check_test(test, &format!("test[{i}]"), document);
        check_inside(&test.event, root, &format!("test[{i}].event"), document);
        if let crate::config::Expectation::Result(file) = &test.expect {
            check_inside(file, root, &format!("test[{i}].expect.result"), document);
        }
    }
    let Some(component) = &manifest.component else {
        document.refuse_key(
            "",
            "`component` is missing",
            "add `component = \"NAME.wasm\"`, the component of the handler",
        );
        return None;
    };
    if !check_inside(component, root, "component", document) {
        return None;
    }
    let mut head = [0; 8];
    let read = fs::File::open(component).and_then(|mut file| {
        file.read_exact(&mut head)?;
        file.metadata()
    });
    match read {
        Ok(metadata) if metadata.len() > limits.component_bytes_max.0 => {
            let what = format!("it has {}, more than {}", ByteSize(metadata.len()), limits.component_bytes_max);
            document.refuse("component", what, "build it with optimisation and without debug information");
        }
        Ok(_) if head == *b"\0asm\x0d\0\x01\0" => return Some(component.clone()),
        Ok(_) if head.starts_with(b"\0asm") => {
            let hint = "make a component of it with `tidegate build`, or with `wasm-tools component new`";
            document.refuse("component", "it is a core WebAssembly module, not a component", hint);
        }
        Ok(_) | Err(_) => document.refuse("component", "it is not WebAssembly", "build it again with `tidegate build`"),
    }
    None
}

/// Whether `file` is a file inside of the bundle; reports it when not.
fn check_inside(file: &Path, root: &Path, path: &str, document: &mut Document) -> bool {
    let inside = file
        .strip_prefix(root)
        .is_ok_and(|rest| rest.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)));
    let shown = file.strip_prefix(root).unwrap_or(file).display().to_string();
    if !inside {
        let hint = "put the file into the bundle's folder, and write its path from there";
        document.refuse(path, format!("`{shown}` is outside of the bundle"), hint);
    } else if !file.is_file() {
        document.refuse(
            path,
            format!("there is no file `{shown}` in the bundle"),
            "run `tidegate build`, or correct the path",
        );
        return false;
    }
    inside
}
