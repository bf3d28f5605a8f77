//! What a collector writes its numbers into.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use super::Histogram;

/// One reading of all metrics. Names are given whole, without `_total`; labels as `[("stream", "readings")]`.
#[derive(Debug)]
pub struct Scrape<'a>(DescriptorEncoder<'a>);

impl<'a> Scrape<'a> {
    pub(super) const fn new(encoder: DescriptorEncoder<'a>) -> Self {
        Self(encoder)
    }

    /// Numbers that only grow, by label set; `_total` is added to the name.
    ///
    /// # Errors
    /// When the text cannot be written.
    pub fn counters<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        self.each(
            name,
            help,
            None,
            MetricType::Counter,
            samples.into_iter().map(|(labels, n)| (labels, ConstCounter::new(n))),
        )
    }

    /// Numbers that go up and down, by label set.
    ///
    /// # Errors
    /// When the text cannot be written.
    pub fn gauges<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (L, i64)>,
    ) -> fmt::Result {
        self.each(
            name,
            help,
            None,
            MetricType::Gauge,
            samples.into_iter().map(|(labels, n)| (labels, ConstGauge::new(n))),
        )
    }

    /// One number that only grows, in seconds; `_seconds_total` is added to the name.
    pub(super) fn seconds_counter(&mut self, name: &str, help: &str, seconds: f64) -> fmt::Result {
        let metric = self.0.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Counter)?;
        ConstCounter::new(seconds).encode(metric)
    }

    /// One number that goes up and down.
    ///
    /// # Errors
    /// When the text cannot be written.
    pub fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        ConstGauge::new(value).encode(self.0.encode_descriptor(name, help, None, MetricType::Gauge)?)
    }

    /// Words that never change while the agent runs; `_info` is added to the name.
    pub(super) fn info(&mut self, name: &str, help: &str, labels: &impl EncodeLabelSet) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Info)?.encode_info(labels)
    }

    /// Histograms, by label set; `_seconds` is added to the name.
    ///
    /// # Errors
    /// When the text cannot be written.
    pub fn seconds<'h, L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (L, &'h Histogram)>,
    ) -> fmt::Result {
        let samples = samples.into_iter().map(|(labels, histogram)| (labels, Shown(histogram)));
        self.each(name, help, Some(&Unit::Seconds), MetricType::Histogram, samples)
    }

    fn each<L: EncodeLabelSet, M: EncodeMetric>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        kind: MetricType,
        samples: impl Iterator<Item = (L, M)>,
    ) -> fmt::Result {
        let mut samples = samples.peekable();
        if samples.peek().is_none() {
            return Ok(());
        }
        let mut family = self.0.encode_descriptor(name, help, unit, kind)?;
        for (labels, metric) in samples {
            metric.encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

struct Shown<'h>(&'h Histogram);

impl EncodeMetric for Shown<'_> {
    fn encode(&self, mut encoder: prometheus_client::encoding::MetricEncoder<'_>) -> fmt::Result {
        let (buckets, count) = self.0.coarse();
        encoder.encode_histogram::<[(&str, &str); 0]>(self.0.sum().as_secs_f64(), count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}
