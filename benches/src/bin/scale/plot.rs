//! The page with the plots. One file that needs nothing else.

use std::fmt::Write as _;

use crate::Series;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 60.0;
const BOTTOM: f64 = 30.0;
const COLOURS: [&str; 6] = ["#2f7d5c", "#3867d6", "#c0392b", "#8e44ad", "#d98c00", "#555"];

/// Both axes are logarithmic; the upright one begins at nothing less than a tenth of the smallest cost.
pub(crate) fn page(series: &[Series]) -> String {
    let mut text = String::from(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>Strongroom at scale</title>\
         <style>:root{color-scheme:light dark}body{font:15px/1.45 system-ui,sans-serif;max-width:52rem;margin:2rem auto;\
         padding:0 1rem}svg{width:100%;height:auto}text{fill:currentColor;font-size:11px}</style>\n\
         <h1>What one operation costs as the world grows</h1>\n",
    );
    let mut plots: Vec<&str> = series.iter().map(|line| line.plot).collect();
    plots.dedup();
    for plot in plots {
        let lines: Vec<&Series> = series.iter().filter(|line| line.plot == plot).collect();
        // Lines in different units have nothing to do with each other's axis.
        let mut units: Vec<&str> = lines.iter().map(|line| line.unit).collect();
        units.sort_unstable();
        units.dedup();
        let against = lines.first().map_or("", |line| line.against);
        let _ = writeln!(text, "<h2>{plot}</h2><p>against {against}</p>");
        for unit in units {
            let lines: Vec<&&Series> = lines.iter().filter(|line| line.unit == unit).collect();
            draw(&mut text, &lines, unit);
        }
    }
    text.push_str("</html>\n");
    text
}

fn draw(text: &mut String, lines: &[&&Series], unit: &str) {
    let points = || lines.iter().flat_map(|line| line.points.iter());
    let bounds = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)))
    };
    let (x0, x1) = bounds(&mut points().map(|(size, _)| (*size as f64).log10()));
    let (low, high) = bounds(&mut points().map(|(_, cost)| cost.max(1e-3).log10()));
    let (y0, y1) = ((low - 0.3).floor(), (high + 0.1).ceil());
    let x = |size: f64| LEFT + (size.log10() - x0) / (x1 - x0).max(1e-9) * (WIDTH - LEFT - 150.0);
    let y =
        |cost: f64| HEIGHT - BOTTOM - (cost.max(1e-3).log10() - y0) / (y1 - y0) * (HEIGHT - BOTTOM - 10.0);
    let _ = write!(text, "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\">");
    let mut decade = y0;
    while decade <= y1 {
        let at = y(10_f64.powf(decade));
        let _ = write!(
            text,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"currentColor\" stroke-opacity=\".2\"/>\
             <text x=\"4\" y=\"{:.1}\">{} {unit}</text>",
            WIDTH - 150.0,
            at + 4.0,
            10_f64.powf(decade)
        );
        decade += 1.0;
    }
    let mut sizes: Vec<u64> = points().map(|(size, _)| *size).collect();
    sizes.sort_unstable();
    sizes.dedup();
    for size in sizes {
        let _ = write!(text, "<text x=\"{:.1}\" y=\"{}\">{size}</text>", x(size as f64) - 8.0, HEIGHT - 8.0);
    }
    for ((number, line), colour) in lines.iter().enumerate().zip(COLOURS.iter().cycle()) {
        let path: Vec<String> = line
            .points
            .iter()
            .map(|(size, cost)| format!("{:.1},{:.1}", x(*size as f64), y(*cost)))
            .collect();
        let _ = write!(
            text,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\
             <text x=\"{}\" y=\"{}\" style=\"fill:{colour}\">{}</text>",
            path.join(" "),
            WIDTH - 142.0,
            20 + 16 * number,
            line.operation
        );
    }
    text.push_str("</svg>\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_drawn_and_units_are_kept_apart() {
        let line = |operation, unit| Series {
            plot: "files",
            against: "files",
            operation,
            unit,
            points: vec![(100, 50.0), (1000, 60.0)],
        };
        let text = page(&[line("lookup", "us"), line("create", "us"), line("memory", "KiB")]);
        assert_eq!(text.matches("<polyline").count(), 3);
        assert_eq!(text.matches("<svg").count(), 2);
        assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
    }
}
