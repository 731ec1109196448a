//! Contests: the same work done by several, in turns.

use std::fmt;

use crate::{Figures, Result};

/// One that takes part in a [`contest`].
pub struct Contender<'a> {
    figures: Figures,
    turn: Box<dyn FnMut() -> Result<f64> + 'a>,
}

impl fmt::Debug for Contender<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Contender").field(&self.figures).finish()
    }
}

impl<'a> Contender<'a> {
    /// The contender `name`, whose turns give a number of `unit` each.
    pub fn new(
        name: impl Into<String>,
        unit: &'static str,
        turn: impl FnMut() -> Result<f64> + 'a,
    ) -> Self {
        Contender {
            figures: Figures::new(name, unit),
            turn: Box::new(turn),
        }
    }
}

/// Lets each take a turn, so many times, and prints what came of it; in the order of `all`.
///
/// # Errors
/// The first of a turn.
pub fn contest(repeats: usize, mut all: Vec<Contender<'_>>) -> Result<Vec<Figures>> {
    let number = all.len();
    for repeat in 0..repeats {
        // Nobody always comes first.
        for turn in 0..number {
            let one = &mut all[(repeat + turn) % number];
            let value = (one.turn)()?;
            one.figures.add(value);
        }
    }
    all.iter().for_each(|one| one.figures.print());
    Ok(all.into_iter().map(|one| one.figures).collect())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn everybody_comes_first_once() {
        let order = RefCell::new(String::new());
        let turn = |name: char| {
            let order = &order;
            move || -> Result<f64> {
                order.borrow_mut().push(name);
                Ok(f64::from(name as u32))
            }
        };
        let all = ['a', 'b', 'c'].map(|name| Contender::new(name, "x", turn(name)));
        let figures = contest(3, all.into()).expect("figures");
        assert_eq!(*order.borrow(), "abcbcacab");
        assert!((figures[1].median() - 98.0).abs() < 1e-9);
    }
}
