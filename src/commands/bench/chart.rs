//! The times as a drawing: sizes across, microseconds up, both logarithmic; a line for each library and kind of
//! buffer, with a band from p10 to p99.

use std::fmt::Write;

use super::report::{Report, Row};
use super::sizes::Bytes;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 520.0;
/// Around the plot: left, right, top, bottom.
const MARGIN: [f64; 4] = [70.0, 170.0, 50.0, 60.0];
const COLOURS: [&str; 6] = ["#0b6e4f", "#58b09c", "#c0392b", "#8e6c8a", "#2c5f9e", "#b8860b"];

/// A logarithmic axis: values to places.
struct Axis {
    least: f64,
    most: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn new(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Axis {
        let (least, most) = values
            .filter(|value| *value > 0.0)
            .fold((f64::INFINITY, 0.0_f64), |(least, most), value| (least.min(value), most.max(value)));
        let (least, most) = if least <= most { (least, most) } else { (1.0, 10.0) };
        // A single value stands in the middle.
        let (least, most) = if most / least < 1.01 { (least / 2.0, most * 2.0) } else { (least, most) };
        Axis { least: least.ln(), most: most.ln(), from, to }
    }

    fn at(&self, value: f64) -> f64 {
        let part = (value.max(1e-3).ln() - self.least) / (self.most - self.least);
        self.from + part * (self.to - self.from)
    }

    /// The powers of ten within.
    fn decades(&self) -> Vec<f64> {
        let (least, most) = (self.least / 10.0_f64.ln(), self.most / 10.0_f64.ln());
        (least.ceil() as i32..=most.floor() as i32).map(|power| 10.0_f64.powi(power)).collect()
    }
}

pub(super) fn draw(report: &Report<'_>) -> String {
    let rows = report.rows();
    let [left, right, top, bottom] = MARGIN;
    let (x0, x1, y0, y1) = (left, WIDTH - right, HEIGHT - bottom, top);
    let x = Axis::new(rows.iter().map(|row| row.size.max(1) as f64), x0, x1);
    let spread = rows.iter().flat_map(|row| [row.p10_us, row.p99_us]);
    let y = Axis::new(spread.flat_map(|time| [time / 1.5, time * 1.5]), y0, y1);

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let args = report.args;
    let what = if args.operation.reduces() { format!("{} {}", args.dtype, args.op) } else { args.dtype.to_string() };
    let title = format!("{}, {what}, {} ranks", args.operation.name(), args.ranks);
    text(
        &mut svg,
        (x0, 24.0),
        "start",
        &format!("{title}: p50, band from p10 to p99"),
        "font-size=\"15\" font-weight=\"bold\"",
    );
    let place = format!("{}, {} cores", report.machine.processor, report.machine.cores);
    text(&mut svg, (x0, 41.0), "start", &place, "fill=\"#666\"");

    for time in y.decades() {
        let at = y.at(time);
        line(&mut svg, (x0, at), (x1, at), "stroke=\"#ddd\"");
        let label = match time {
            us if us < 1.0 => format!("{us} us"),
            us if us < 1e3 => format!("{us:.0} us"),
            us if us < 1e6 => format!("{:.0} ms", us / 1e3),
            us => format!("{:.0} s", us / 1e6),
        };
        text(&mut svg, (x0 - 8.0, at + 4.0), "end", &label, "");
    }
    let mut sizes: Vec<usize> = rows.iter().map(|row| row.size).collect();
    sizes.dedup();
    for size in &sizes {
        let at = x.at((*size).max(1) as f64);
        line(&mut svg, (at, y0), (at, y1), "stroke=\"#eee\"");
        text(&mut svg, (at, y0 + 18.0), "middle", &Bytes(*size).to_string(), "");
    }
    line(&mut svg, (x0, y0), (x1, y0), "stroke=\"#333\"");
    line(&mut svg, (x0, y0), (x0, y1), "stroke=\"#333\"");
    text(&mut svg, ((x0 + x1) / 2.0, HEIGHT - 16.0), "middle", "size", "");

    let mut series: Vec<(&str, &str)> = Vec::new();
    for row in &rows {
        if !series.contains(&(row.lib, row.buffer)) {
            series.push((row.lib, row.buffer));
        }
    }
    // The fastest at the bottom of the legend, as in the plot.
    for (index, (lib, buffer)) in series.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let own: Vec<&Row> = rows.iter().filter(|row| (row.lib, row.buffer) == (*lib, *buffer)).collect();
        let place = |row: &Row, time: f64| format!("{:.1},{:.1}", x.at(row.size.max(1) as f64), y.at(time));
        let upper = own.iter().map(|row| place(row, row.p99_us));
        let lower = own.iter().rev().map(|row| place(row, row.p10_us));
        let band: Vec<String> = upper.chain(lower).collect();
        let _ = writeln!(svg, "<polygon points=\"{}\" fill=\"{colour}\" fill-opacity=\"0.13\"/>", band.join(" "));
        let middle: Vec<String> = own.iter().map(|row| place(row, row.p50_us)).collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            middle.join(" ")
        );
        for row in &own {
            let (cx, cy) = (x.at(row.size.max(1) as f64), y.at(row.p50_us));
            let _ = writeln!(svg, "<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"3\" fill=\"{colour}\"/>");
        }
        let at = y1 + 14.0 + 20.0 * index as f64;
        line(
            &mut svg,
            (x1 + 16.0, at - 4.0),
            (x1 + 38.0, at - 4.0),
            &format!("stroke=\"{colour}\" stroke-width=\"3\""),
        );
        let name = if *lib == "muster" { format!("muster, {buffer}") } else { (*lib).to_owned() };
        text(&mut svg, (x1 + 44.0, at), "start", &name, "");
    }
    svg.push_str("</svg>\n");
    svg
}

fn text(svg: &mut String, (x, y): (f64, f64), anchor: &str, words: &str, style: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" {style}>{words}</text>");
}

fn line(svg: &mut String, (x1, y1): (f64, f64), (x2, y2): (f64, f64), style: &str) {
    let _ = writeln!(svg, "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" {style}/>");
}
