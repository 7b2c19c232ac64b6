//! The distributions of a run as pictures: histograms for the terminal, cumulative curves as SVG.

use std::io::{self, Write};

use plotters::prelude::*;

use super::report::{Distribution, Report};
use crate::error::{Error, Result};

/// Rows of a histogram, and characters of its longest bar.
const BINS: usize = 10;
const BAR: usize = 48;
/// Pixels of the picture.
const SIZE: (u32, u32) = (1200, 800);
/// Most points of a curve: more cannot be seen.
const POINTS: usize = 400;

/// Bars of how many times lie where, up to the 99th percentile; the last row has all beyond it.
pub(super) fn print_histograms(report: &Report, out: &mut impl Write) -> io::Result<()> {
    for distribution in &report.distributions {
        if distribution.key == "ttft" || distribution.key == "itl" {
            writeln!(out, "\n{} (ms)", distribution.title)?;
            for (above, count) in histogram(distribution) {
                let most = distribution.sorted.len().max(1);
                let bar = "█".repeat((count * BAR).div_ceil(most));
                writeln!(out, "{above:>12.2} {count:>8} {bar}")?;
            }
        }
    }
    Ok(())
}

/// The lower end of each bin, and how many lie in it.
fn histogram(distribution: &Distribution) -> Vec<(f64, usize)> {
    let Some(&least) = distribution.sorted.first() else { return Vec::new() };
    let width = (distribution.percentile(99.0) - least) / BINS as f64;
    if width <= 0.0 {
        return vec![(least, distribution.sorted.len())];
    }
    let mut bins: Vec<_> = (0..=BINS).map(|k| (least + k as f64 * width, 0)).collect();
    for &time in &distribution.sorted {
        bins[(((time - least) / width) as usize).min(BINS)].1 += 1;
    }
    bins
}

/// A picture with the cumulative distribution of each kind of time.
///
/// # Errors
/// `Internal` where it cannot be drawn.
pub(super) fn svg(report: &Report) -> Result<String> {
    let mut picture = String::new();
    draw(report, &mut picture).map_err(|error| Error::internal(format!("the picture cannot be drawn: {error}")))?;
    Ok(picture)
}

fn draw(report: &Report, picture: &mut String) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(picture, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let panels = root.titled(&format!("candlewick bench serve: {}", report.model), ("sans-serif", 24))?;
    for (panel, distribution) in panels.split_evenly((2, 2)).iter().zip(&report.distributions) {
        let longest = distribution.sorted.last().copied().unwrap_or(1.0).max(1e-3);
        let mut chart = ChartBuilder::on(panel)
            .margin(16)
            .caption(format!("{} (ms)", distribution.title), ("sans-serif", 18))
            .x_label_area_size(28)
            .y_label_area_size(44)
            .build_cartesian_2d(0.0..longest, 0.0..100.0)?;
        chart.configure_mesh().y_desc("% of all").max_light_lines(1).draw()?;
        chart.draw_series(LineSeries::new(curve(distribution), BLUE.stroke_width(2)))?;
        for percent in [50.0, 99.0] {
            let at = distribution.percentile(percent);
            let label = Text::new(
                format!("p{percent} {at:.1}"),
                // Inside the picture, however far to the right the point is.
                (at.min(longest * 0.86), percent - 6.0),
                ("sans-serif", 14),
            );
            chart.draw_series([Circle::new((at, percent), 4, RED.filled())])?;
            chart.draw_series([label])?;
        }
    }
    root.present()?;
    Ok(())
}

/// Time and the share of all that took no longer, in percent.
fn curve(distribution: &Distribution) -> Vec<(f64, f64)> {
    let n = distribution.sorted.len();
    let points = n.min(POINTS);
    let at = |k: usize| if points < 2 { 100.0 } else { k as f64 * 100.0 / (points - 1) as f64 };
    (0..points).map(|k| (distribution.percentile(at(k)), at(k))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(sorted: Vec<f64>) -> Distribution {
        Distribution { key: "itl", title: "inter-token latency", sorted }
    }

    #[test]
    fn every_time_lies_in_a_bin_and_the_slowest_in_the_last() {
        let mut sorted: Vec<f64> = (0..200).map(f64::from).collect();
        sorted.push(1e9);
        let bins = histogram(&times(sorted));
        assert_eq!(bins.iter().map(|(_, count)| count).sum::<usize>(), 201);
        assert!(bins.len() == BINS + 1 && bins[BINS].1 >= 1);
        assert_eq!(histogram(&times(vec![2.0; 5])), [(2.0, 5)]);
        assert_eq!(histogram(&times(Vec::new())), []);
    }

    #[test]
    fn a_curve_rises_to_all() {
        let points = curve(&times((0..5000).map(f64::from).collect()));
        assert_eq!((points.len(), points[POINTS - 1]), (POINTS, (4999.0, 100.0)));
        assert!(points.windows(2).all(|pair| pair[0].0 <= pair[1].0 && pair[0].1 < pair[1].1));
        assert_eq!(curve(&times(vec![3.0])), [(3.0, 100.0)]);
    }
}
