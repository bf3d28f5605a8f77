//! Recognises what the wearer of a smart watch does, from ten seconds of its motion sensor.

use function_sdk::kv::{self, Bucket};
use function_sdk::{Event, Failure, Tensor, TensorKind, append, handler, model};
use serde::{Deserialize, Serialize};

const SAMPLES: u32 = 100;
const AXES: u32 = 6;
const ACTIVITIES: [&str; 4] = ["Standing", "Running", "Walking", "Badminton"];

/// Each bit is a sample of the window that has come.
type Seen = u128;
const ALL: Seen = (1 << SAMPLES) - 1;

/// A repeat comes soon after the original, so only this many windows are remembered once they are done.
const DONE_WINDOWS: u64 = 64;

#[derive(Deserialize)]
struct Sample {
    device: String,
    seq: u64,
    ax: f32,
    ay: f32,
    az: f32,
    gx: f32,
    gy: f32,
    gz: f32,
}

#[derive(Debug, PartialEq, Serialize)]
struct Activity {
    device: String,
    window: u64,
    activity: &'static str,
    confidence: f32,
    seq_first: u64,
    seq_last: u64,
}

/// Samples may come late, out of order and more than once; window `w` of a device is its samples 100 w to 100 w + 99.
#[handler]
fn handle(event: Event) -> Result<Option<Activity>, Failure> {
    let sample: Sample = event.json()?;
    let (window, place) = (sample.seq / u64::from(SAMPLES), sample.seq % u64::from(SAMPLES));
    let windows = kv::open("windows")?;
    let key = window_key(window, &sample.device);

    let seen = seen(&windows, &key)?;
    let now = seen | 1 << place;
    if now == seen {
        return Ok(None);
    }
    windows.set(&key, &now.to_le_bytes())?;
    windows.set(&sample_key(window, place, &sample.device), &bytes(&sample))?;
    if now != ALL {
        return Ok(None);
    }

    let activity = recognise(&windows, sample.device, window)?;
    append("activities", &activity)?;
    Ok(Some(activity))
}

fn seen(windows: &Bucket, key: &str) -> Result<Seen, Failure> {
    match windows.get(key)? {
        None => Ok(0),
        Some(bits) => bits
            .try_into()
            .map(Seen::from_le_bytes)
            .map_err(|bits: Vec<u8>| Failure::reject(format_args!("window `{key}` is {} bytes, not 16", bits.len()))),
    }
}

/// Runs the model over a full window, of which only the mark that it is done stays.
fn recognise(windows: &Bucket, device: String, window: u64) -> Result<Activity, Failure> {
    let keys: Vec<String> = (0..u64::from(SAMPLES)).map(|place| sample_key(window, place, &device)).collect();
    let samples: Vec<Vec<u8>> = windows.get_many(&keys)?.into_iter().flatten().collect();
    let input = Tensor::from_bytes(TensorKind::F32, [1, SAMPLES, AXES], samples.concat())?;
    let outputs = model("motion").run([("window", input)])?;
    let probabilities = outputs.values::<f32>("probabilities")?;
    let best = ACTIVITIES.into_iter().zip(probabilities).max_by(|a, b| a.1.total_cmp(&b.1));
    let (activity, confidence) = best.ok_or_else(|| Failure::reject("model `motion` gave no probabilities"))?;

    windows.delete_many(&keys)?;
    if let Some(old) = window.checked_sub(DONE_WINDOWS) {
        windows.delete(&window_key(old, &device))?;
    }
    let seq_first = window * u64::from(SAMPLES);
    Ok(Activity { device, window, activity, confidence, seq_first, seq_last: seq_first + u64::from(SAMPLES) - 1 })
}

// The device comes last: whatever its name holds, no two keys are the same.
fn window_key(window: u64, device: &str) -> String {
    format!("window/{window}/{device}")
}

fn sample_key(window: u64, place: u64, device: &str) -> String {
    format!("sample/{window}/{place}/{device}")
}

fn bytes(sample: &Sample) -> Vec<u8> {
    [sample.ax, sample.ay, sample.az, sample.gx, sample.gy, sample.gz]
        .iter()
        .flat_map(|axis| axis.to_le_bytes())
        .collect()
}

#[cfg(test)]
mod tests {
    use function_sdk::testing::{Host, message};

    use super::*;

    /// A model that is sure of "Walking", after checking that samples arrive in the order of their numbers.
    fn host() -> Host {
        Host::new().with_model("motion", |inputs| {
            let [("window", window)] = inputs else { return Err("only `window` is an input".to_owned()) };
            assert_eq!(window.shape(), [1, SAMPLES, AXES]);
            let first_axis: Vec<f32> = window.values::<f32>().unwrap().into_iter().step_by(6).collect();
            assert!(first_axis.windows(2).all(|pair| pair[0] + 1.0 == pair[1]), "{first_axis:?}");
            Ok(vec![("probabilities".to_owned(), Tensor::new([1, 4], &[0.0, 0.125, 0.75, 0.125_f32]).unwrap())])
        })
    }

    fn send(host: &mut Host, device: &str, seq: u64) -> Option<Activity> {
        let payload = format!(
            r#"{{"device":"{device}","seq":{seq},"ts":{},"ax":{seq}.0,"ay":0,"az":0,"gx":0,"gy":0,"gz":-0.5}}"#,
            seq * 100
        );
        host.run(|| handle(message(&format!("wrist/{device}/imu"), payload))).unwrap()
    }

    #[test]
    fn a_full_window_is_recognised_and_recorded() {
        let mut host = host();
        assert!((200..299).all(|seq| send(&mut host, "watch-1", seq).is_none()));
        let activity = send(&mut host, "watch-1", 299).unwrap();
        let json =
            r#"{"device":"watch-1","window":2,"activity":"Walking","confidence":0.75,"seq_first":200,"seq_last":299}"#;
        assert_eq!(serde_json::to_string(&activity).unwrap(), json);
        assert_eq!(host.appended("activities"), [json.as_bytes()]);
    }

    #[test]
    fn samples_may_come_in_any_order_and_more_than_once() {
        let mut host = host();
        let shuffled = (0..400).map(|i| i * 37 % 100);
        let activities = shuffled.filter_map(|seq| send(&mut host, "watch-1", seq)).count();
        assert_eq!(activities, 1);
        assert_eq!(host.appended("activities").len(), 1);
    }

    #[test]
    fn devices_and_windows_do_not_mix() {
        let mut host = host();
        let mut activities = Vec::new();
        for seq in 0..300 {
            activities.extend(["watch-1", "watch-2"].into_iter().filter_map(|device| send(&mut host, device, seq)));
        }
        let of: Vec<_> = activities.iter().map(|activity| (activity.device.as_str(), activity.window)).collect();
        assert_eq!(
            of,
            [("watch-1", 0), ("watch-2", 0), ("watch-1", 1), ("watch-2", 1), ("watch-1", 2), ("watch-2", 2)]
        );
    }

    #[test]
    fn what_is_remembered_stays_bounded() {
        let mut host = host();
        for seq in 0..100 * (DONE_WINDOWS + 10) {
            send(&mut host, "watch-1", seq);
        }
        assert_eq!(host.key_count(), usize::try_from(DONE_WINDOWS).unwrap());
    }

    #[test]
    fn a_model_that_fails_leaves_the_window_open() {
        let mut host = Host::new().with_model("motion", |_| Err("input `window` must be f64".to_owned()));
        assert!((0..99).all(|seq| send(&mut host, "watch-1", seq).is_none()));
        let last = r#"{"device":"watch-1","seq":99,"ts":0,"ax":0,"ay":0,"az":0,"gx":0,"gy":0,"gz":0}"#;
        let failure = host.run(|| handle(message("wrist/watch-1/imu", last))).unwrap_err();
        assert_eq!(failure, Failure::reject("model `motion`: input `window` must be f64"));
        assert!(host.appended("activities").is_empty());
        assert_eq!(host.value("windows", "window/0/watch-1").unwrap(), (ALL >> 1).to_le_bytes());
    }
}
