//! The chart of the rebuilds.

use std::path::Path;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::rebuild::{Rebuilt, Variant};
use crate::report::{amount, rate};

const BAR: i32 = 18;
const LEFT: i32 = 330;
const WIDTH: i32 = 900;
const TOP: i32 = 60;
const COLORS: [RGBColor; 3] = [RGBColor(46, 107, 166), RGBColor(230, 145, 56), RGBColor(120, 120, 120)];

/// Bars of events a second, for each variant one a size.
pub fn draw(rebuilt: &[Rebuilt], file: &Path) -> anyhow::Result<()> {
    let mut variants: Vec<Variant> = Vec::new();
    for (variant, _) in rebuilt.iter().flat_map(Rebuilt::medians) {
        if !variants.contains(&variant) {
            variants.push(variant);
        }
    }
    let most = rebuilt.iter().flat_map(Rebuilt::medians).map(|(_, rate)| rate).fold(1.0, f64::max);
    let group = BAR * i32::try_from(rebuilt.len())? + 16;
    let height = TOP + group * i32::try_from(variants.len())? + 10;
    let area = SVGBackend::new(file, (WIDTH as u32, height as u32)).into_drawing_area();
    area.fill(&WHITE)?;
    let text = |size: u32| ("sans-serif", size).into_font().color(&BLACK);
    area.draw(&Text::new("Rebuild of three projections, events a second", (16, 12), text(20)))?;
    let left = text(15).pos(Pos::new(HPos::Left, VPos::Center));
    for (i, size) in rebuilt.iter().enumerate() {
        let x = LEFT + 220 * i as i32;
        area.draw(&Rectangle::new([(x, 42), (x + 12, 54)], COLORS[i % COLORS.len()].filled()))?;
        area.draw(&Text::new(format!("{} events", amount(size.events)), (x + 18, 48), left.clone()))?;
    }
    let right = text(15).pos(Pos::new(HPos::Right, VPos::Center));
    for (row, variant) in (0..).zip(&variants) {
        let top = TOP + 8 + group * row;
        area.draw(&Text::new(variant.name(), (LEFT - 10, top + (group - 16) / 2), right.clone()))?;
        for (i, size) in rebuilt.iter().enumerate() {
            let Some((_, speed)) = size.medians().find(|(measured, _)| measured == variant) else { continue };
            let y = top + BAR * i as i32;
            let end = LEFT + (speed / most * f64::from(WIDTH - LEFT - 90)).round().max(1.0) as i32;
            area.draw(&Rectangle::new([(LEFT, y), (end, y + BAR - 2)], COLORS[i % COLORS.len()].filled()))?;
            area.draw(&Text::new(rate(speed), (end + 6, y + BAR / 2 - 1), left.clone()))?;
        }
    }
    area.present()?;
    Ok(())
}
