//! Bounds of an index scan for a page of names, for both stores.
use crate::store::NamePage;

/// Names on the page are `>= from` and `< below`, compared by bytes, without `after`. One bound from
/// below: of two, SQLite would seek by the one that it likes and read all names up to the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub after: String,
    pub from: String,
    pub below: String,
    pub limit: i64,
}

impl Bounds {
    /// Returns the bounds of a page; `None` when no name can be on it.
    ///
    /// Names are ASCII without NUL (`write::check_name`): every name that begins with the prefix lies below
    /// the prefix with the highest character appended, and a NUL, which Postgres takes in no text, compares
    /// like the end of the text.
    pub fn of(page: NamePage) -> Option<Self> {
        let NamePage { prefix, after, limit } = page;
        if prefix.contains('\0') || limit == 0 {
            return None;
        }
        let mut after = after.unwrap_or_default();
        after.truncate(after.find('\0').unwrap_or(after.len()));
        let below = format!("{prefix}{}", char::MAX);
        Some(Self { from: prefix.max(after.clone()), after, below, limit: limit.into() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_bounds_hold_exactly_the_names_of_the_page(
            name in "[A-Za-z0-9._:-]{1,4}", prefix in "[a-b._%\0]{0,2}", after in "[a-b._\0ä]{0,3}",
        ) {
            let page = NamePage { prefix: prefix.clone(), after: Some(after.clone()), limit: 1 };
            let held = Bounds::of(page)
                .is_some_and(|b| name != b.after && name >= b.from && name < b.below);
            prop_assert_eq!(held, name.starts_with(&prefix) && name > after);
        }
    }
}
