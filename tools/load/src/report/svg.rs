//! Plots as inline SVG: lines over linear or logarithmic axes, no script.

use std::fmt::Write as _;

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 260.0;
/// Room for labels: left, right, top, bottom.
const MARGIN: (f64, f64, f64, f64) = (84.0, 12.0, 12.0, 36.0);

/// One line of a plot. `class` names its colour in the page's style sheet.
pub(super) struct Line {
    pub(super) class: &'static str,
    pub(super) points: Vec<(f64, f64)>,
}

/// A tick of an axis: its position and its label.
pub(super) type Tick = (f64, String);

/// A plot whose axes are already in the units of the points.
pub(super) struct Plot {
    pub(super) lines: Vec<Line>,
    pub(super) x_ticks: Vec<Tick>,
    pub(super) y_ticks: Vec<Tick>,
    /// Moments of the x axis, with what happened, ready for a page.
    pub(super) marks: Vec<Tick>,
    /// First and last value of each axis.
    pub(super) x: (f64, f64),
    pub(super) y: (f64, f64),
}

impl Plot {
    /// The plot as an SVG element.
    pub(super) fn render(&self) -> String {
        let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">");
        let (right, bottom) = (WIDTH - MARGIN.1, HEIGHT - MARGIN.3);
        for (value, label) in &self.y_ticks {
            let y = self.place_y(*value);
            add(&mut svg, &format!("<path class=\"grid\" d=\"M{} {y:.1}H{right}\"/>", MARGIN.0));
            add(
                &mut svg,
                &format!("<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>", MARGIN.0 - 6.0, y + 4.0),
            );
        }
        for (value, label) in &self.x_ticks {
            let x = self.place_x(*value);
            add(&mut svg, &format!("<path class=\"grid\" d=\"M{x:.1} {}V{bottom}\"/>", MARGIN.2));
            add(&mut svg, &format!("<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{label}</text>", bottom + 18.0));
        }
        for (number, (value, label)) in self.marks.iter().enumerate() {
            let (x, y) = (self.place_x(*value), MARGIN.2 + 12.0 + 14.0 * (number % 4) as f64);
            add(&mut svg, &format!("<path class=\"mark\" d=\"M{x:.1} {}V{bottom}\"/>", MARGIN.2));
            let (anchor, place) = if x > WIDTH / 2.0 { ("end", x - 4.0) } else { ("start", x + 4.0) };
            add(&mut svg, &format!("<text x=\"{place:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{label}</text>"));
        }
        for line in &self.lines {
            let places = line.points.iter().map(|(x, y)| format!("{:.1},{:.1}", self.place_x(*x), self.place_y(*y)));
            let places: Vec<_> = places.collect();
            add(&mut svg, &format!("<polyline class=\"{}\" points=\"{}\"/>", line.class, places.join(" ")));
        }
        svg.push_str("</svg>");
        svg
    }

    fn place_x(&self, value: f64) -> f64 {
        MARGIN.0 + share(value, self.x) * (WIDTH - MARGIN.0 - MARGIN.1)
    }

    fn place_y(&self, value: f64) -> f64 {
        HEIGHT - MARGIN.3 - share(value, self.y) * (HEIGHT - MARGIN.2 - MARGIN.3)
    }
}

/// About five round ticks from zero to `last`.
pub(super) fn round_ticks(last: f64, show: impl Fn(f64) -> String) -> Vec<Tick> {
    let rough = (last / 5.0).max(1e-9);
    let power = 10_f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|step| *step >= rough).unwrap_or(rough);
    (0..=10)
        .map(|number| f64::from(number) * step)
        .take_while(|value| *value <= last * 1.0001)
        .map(|value| (value, show(value)))
        .collect()
}

fn share(value: f64, (first, last): (f64, f64)) -> f64 {
    if last > first { ((value - first) / (last - first)).clamp(0.0, 1.0) } else { 0.0 }
}

fn add(svg: &mut String, element: &str) {
    svg.write_str(element).expect("a string takes every byte");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        for last in [0.0, 1e-12, 0.3, 1.0, 7.0, 123_456.0, 1e15] {
            let ticks = round_ticks(last, |value| value.to_string());
            assert!((1..=11).contains(&ticks.len()), "{last}: {ticks:?}");
        }
        let values: Vec<_> = round_ticks(7.0, |_| String::new()).into_iter().map(|(value, _)| value).collect();
        assert_eq!(values, [0.0, 2.0, 4.0, 6.0]);
    }

    #[test]
    fn points_stay_inside_the_frame() {
        let lines = vec![Line { class: "a", points: vec![(0.0, -5.0), (1.0, 5.0), (9.0, 0.5)] }];
        let (ticks, marks) = (Vec::new(), vec![(1.0, "half".to_owned())]);
        let svg = Plot { lines, x_ticks: ticks.clone(), y_ticks: ticks, marks, x: (0.0, 2.0), y: (0.0, 1.0) }.render();
        assert!(svg.contains("M486.0 12V224") && svg.contains(">half<"), "{svg}");
        assert!(svg.contains("points=\"84.0,224.0 486.0,12.0 888.0,118.0\""), "{svg}");
    }
}
