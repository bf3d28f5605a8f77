//! Files of the gateway: what the agent keeps, what it must keep to itself, what ends on a day, and devices.

use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sync_client::identity::{Identity, Life};

use super::Finding;
use crate::config::{Config, SourceConfig, UplinkTo};
use crate::readable::{duration, time};
use crate::tls;

/// A certificate that ends within it is told of: enough to send somebody there.
const SOON: Duration = Duration::from_secs(14 * 86_400);
/// Where provisioning keeps the gateway's own certificate, in the state folder.
const IDENTITY: &str = "identity";

/// Whether all that the agent keeps belongs to whoever runs it.
pub(super) fn state(state_dir: &Path) -> Finding {
    let name = state_dir.display();
    let Ok(folder) = fs::metadata(state_dir) else {
        return Finding::ok("state folder", format!("{name} is not there yet: the agent makes it at its first start"));
    };
    let strangers = |folder: &Path| -> Option<PathBuf> {
        let owner = fs::metadata(state_dir).ok()?.uid();
        let entries = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
        entries.into_iter().find(|path| fs::symlink_metadata(path).is_ok_and(|entry| entry.uid() != owner))
    };
    let folders =
        fs::read_dir(state_dir).into_iter().flatten().flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
    if let Some(stranger) =
        std::iter::once(state_dir.to_path_buf()).chain(folders).find_map(|folder| strangers(&folder))
    {
        let what = format!("{} belongs to another user than {name}", stranger.display());
        let hint = format!(
            "`chown -R --reference={name} {name}` gives all of it to that user; an agent that somebody started by hand as root leaves such files"
        );
        return Finding::error("state folder", what, hint);
    }
    if let Err(error) = fs::read_dir(state_dir) {
        return Finding::unknown("state folder", format!("{name} cannot be looked into: {error}"));
    }
    if folder.mode() & 0o007 != 0 {
        let what = format!("{name} is open to all users of this machine, and keys are in it");
        return Finding::warning("state folder", what, format!("`chmod o= {name}`"));
    }
    Finding::ok("state folder", format!("{name} and what is in it belong to one user"))
}

/// Whether passwords, tokens and keys can be read by the agent and by nobody else.
pub(super) fn secrets(config: &Config) -> Vec<Finding> {
    let owner = fs::metadata(&config.gateway.state_dir).ok();
    let files = secret_files(config);
    let count = files.len();
    let found: Vec<_> = files.into_iter().filter_map(|file| secret(&file, owner.as_ref())).collect();
    if found.is_empty() && count > 0 {
        return vec![Finding::ok(
            "secrets",
            format!("the {count} files with passwords, tokens and keys are for the agent only"),
        )];
    }
    found
}

fn secret(file: &Path, owner: Option<&Metadata>) -> Option<Finding> {
    let name = file.display();
    let of = match fs::metadata(file) {
        Ok(of) => of,
        Err(error) => {
            let hint = "put the file there, or change the path in gateway.toml; `sudo` may be needed to look at it";
            return Some(Finding::error("secrets", format!("{name}: {error}"), hint));
        }
    };
    if of.mode() & 0o004 != 0 {
        return Some(Finding::warning(
            "secrets",
            format!("{name} can be read by all users of this machine"),
            format!("`chmod o= {name}`"),
        ));
    }
    let owner = owner?;
    (owner.uid() != 0 && !may_read(&of, owner)).then(|| {
        let what = format!("{name} cannot be read by the user of the agent, {}", owner.uid());
        let hint = format!(
            "`chown :{} {name} && chmod g+r {name}`, or hand it over by `LoadCredential=` of systemd",
            owner.gid()
        );
        Finding::error("secrets", what, hint)
    })
}

/// Whether who owns `owner` may read `of`, as far as the owner's own group goes.
fn may_read(of: &Metadata, owner: &Metadata) -> bool {
    let right = match () {
        () if of.uid() == owner.uid() => 0o400,
        () if of.gid() == owner.gid() => 0o040,
        () => 0o004,
    };
    of.mode() & right != 0
}

fn secret_files(config: &Config) -> Vec<PathBuf> {
    let mqtt = config.mqtt.values().flat_map(|broker| [&broker.password_file, &broker.key]);
    let embedded = config.embedded_broker.iter();
    let users = embedded.clone().flat_map(|broker| broker.users.values().map(|user| user.password_file.clone()));
    let cloud = config.cloud.iter().map(|cloud| &cloud.key);
    let api = std::iter::once(&config.api.token_file);
    let uplinks = config.stream.values().filter_map(|stream| match &stream.uplink.as_ref()?.to {
        UplinkTo::Http(http) => Some([&http.token_file, &http.key]),
        UplinkTo::Mqtt(_) | UplinkTo::Cloud => None,
    });
    let keys = embedded.map(|broker| &broker.key);
    let named = mqtt.chain(keys).chain(cloud).chain(api).chain(uplinks.flatten()).flatten().cloned();
    let mut files: Vec<PathBuf> = named.chain(users).collect();
    files.sort();
    files.dedup();
    files
}

/// Whether certificates are valid, and for how long.
pub(super) fn certificates(config: &Config, now_ms: u64) -> Vec<Finding> {
    let mut files: Vec<(&'static str, &PathBuf)> = Vec::new();
    for broker in config.mqtt.values() {
        files.extend(broker.ca.iter().map(|file| ("ca", file)).chain(broker.cert.iter().map(|file| ("cert", file))));
    }
    if let Some(cloud) = &config.cloud {
        files.extend(cloud.ca.iter().map(|file| ("ca", file)).chain(cloud.cert.iter().map(|file| ("cert", file))));
    }
    files.extend(config.embedded_broker.iter().filter_map(|broker| Some(("cert", broker.cert.as_ref()?))));
    files.sort();
    files.dedup();
    let mut found = Vec::new();
    for (key, file) in files {
        let about = format!("certificate {}", file.display());
        match tls::certificates(key, file).map_err(|error| error.to_string()).and_then(|chain| {
            // The first is the one that is shown; of authorities, the one that ends first counts.
            let lives: Result<Vec<_>, _> = chain.iter().map(Life::of).collect();
            lives.map(|lives| lives.into_iter().min_by_key(|life| life.until_ms))
        }) {
            Ok(Some(life)) => {
                found.push(valid(about, life, now_ms, "replace the file; the agent reads it at its next connection"))
            }
            Ok(None) => {}
            Err(error) => found.push(Finding::error(about, error, "it must be a PEM file of certificates")),
        }
    }
    match Identity::open(&config.gateway.state_dir.join(IDENTITY)) {
        Ok(Some(identity)) => {
            let hint = "the agent renews it while the control plane is in reach: look at `tidegate status`, or claim the gateway again";
            found.push(valid("certificate of this gateway".to_owned(), identity.life(), now_ms, hint));
        }
        Ok(None) => {}
        Err(error) => {
            let hint = error.hint().unwrap_or("claim the gateway again");
            found.push(Finding::error("certificate of this gateway", error.to_string(), hint));
        }
    }
    found
}

fn valid(about: String, life: Life, now_ms: u64, hint: &str) -> Finding {
    let until = time(life.until_ms);
    if now_ms < life.from_ms {
        let what = format!("it is not valid before {}", time(life.from_ms));
        return Finding::error(about, what, "is the clock of this machine right?");
    }
    match life.until_ms.checked_sub(now_ms).map(Duration::from_millis) {
        None => Finding::error(about, format!("it has expired at {until}"), hint),
        Some(left) if left < SOON => {
            Finding::warning(about, format!("it expires in {}, at {until}", duration(left)), hint)
        }
        Some(_) => Finding::ok(about, format!("valid until {until}")),
    }
}

/// Whether what sources read is there, and the agent may read it.
pub(super) fn devices(config: &Config) -> Vec<Finding> {
    let owner = fs::metadata(&config.gateway.state_dir).ok();
    let path = |source: &SourceConfig| match source {
        SourceConfig::Serial(serial) => Some(serial.port.device.clone()),
        SourceConfig::Gpio(gpio) if gpio.chip.starts_with('/') => Some(PathBuf::from(&gpio.chip)),
        SourceConfig::Tail(tail) => Some(tail.file.clone()),
        SourceConfig::File(file) => Some(file.folder.clone()),
        _ => None,
    };
    let paths = config.source.iter().filter_map(|(name, source)| Some((format!("source {name}"), path(source)?)));
    paths.map(|(about, path)| device(about, &path, owner.as_ref())).collect()
}

fn device(about: String, path: &Path, owner: Option<&Metadata>) -> Finding {
    let name = path.display();
    let of = match fs::metadata(path) {
        Ok(of) => of,
        Err(error) => {
            let hint = "plug it in, or change the path in gateway.toml; the agent takes it up when it comes";
            return Finding::warning(about, format!("{name}: {error}"), hint);
        }
    };
    match owner.filter(|owner| owner.uid() != 0 && !may_read(&of, owner)) {
        Some(owner) if of.file_type().is_char_device() => {
            let what = format!(
                "{name} belongs to group {}, of which the user of the agent, {}, must be one",
                of.gid(),
                owner.uid()
            );
            let hint =
                "`SupplementaryGroups=` and `DeviceAllow=` in a drop-in of tidegate.service give it to the agent";
            Finding::warning(about, what, hint)
        }
        Some(owner) => {
            let what = format!("{name} may not be readable for the user of the agent, {}", owner.uid());
            Finding::warning(about, what, format!("`setfacl -m u:{}:rX {name}`", owner.uid()))
        }
        None => Finding::ok(about, format!("{name} is there")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::super::Verdict;
    use super::*;
    use crate::config::Environment;

    const DAY_MS: u64 = 86_400_000;

    #[test]
    fn a_certificate_is_told_before_it_ends() {
        let life = Life { from_ms: 100 * DAY_MS, until_ms: 200 * DAY_MS };
        let verdict = |day: u64| valid("certificate".to_owned(), life, day * DAY_MS, "").verdict;
        assert_eq!(verdict(99), Verdict::Error, "not valid yet");
        assert_eq!(verdict(150), Verdict::Ok);
        assert_eq!(verdict(190), Verdict::Warning);
        assert_eq!(verdict(201), Verdict::Error);
    }

    #[test]
    fn a_password_that_all_can_read_is_a_warning_and_one_that_is_missing_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        fs::write(&file, "secret").unwrap();
        let text = "[gateway]\nstate_dir = \"state\"\n[mqtt.local]\nurl = \"mqtt://127.0.0.1\"\nusername = \"me\"\npassword_file = \"password\"\n";
        let config = Config::parse(text, &dir.path().join("gateway.toml"), &Environment::default()).unwrap();
        let verdict = |mode: u32| {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            secrets(&config)[0].verdict
        };
        assert_eq!(verdict(0o644), Verdict::Warning);
        assert_eq!(verdict(0o600), Verdict::Ok);
        fs::remove_file(&file).unwrap();
        assert_eq!(secrets(&config)[0].verdict, Verdict::Error);
    }

    #[test]
    fn a_state_folder_that_others_can_look_into_is_a_warning() {
        let dir = tempfile::tempdir().unwrap();
        let verdict = |mode: u32| {
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
            state(dir.path()).verdict
        };
        assert_eq!((verdict(0o755), verdict(0o750)), (Verdict::Warning, Verdict::Ok));
    }
}
