//! What a function sees of its layers.

use super::*;
use crate::store::layers::view;

#[tokio::test]
async fn layers_are_read_only_at_opt() {
    let site = Site::new();
    let layer = site.dir.path().join("layer");
    std::fs::create_dir(&layer).unwrap();
    std::fs::write(layer.join("table"), "1;2").unwrap();
    let layers = view(std::slice::from_ref(&layer), site.dir.path(), &Limits::default()).unwrap();
    let component = guest::component_with_files("/opt", guest::READS_FILES, "no file");
    let function = site.runtime.load(site.spec(&component, |spec| spec.layers = layers)).await.unwrap();
    let mut instance = function.instantiate().await.unwrap();
    assert_eq!(text(&invoke(&mut instance, "table").await.outcome), "1;2");
    for closed in ["nothing", "../journal", "/etc/passwd", "!table", "!new"] {
        let outcome = invoke(&mut instance, closed).await.outcome;
        assert!(matches!(outcome, Outcome::Rejected(_)), "{closed}: {outcome}");
    }
    assert_eq!(std::fs::read_to_string(layer.join("table")).unwrap(), "1;2");
}
