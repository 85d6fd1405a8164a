//! JSON text as a tree. Numbers keep the text that they were written with, since no number of 64 bits holds
//! them all.
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Arrays and objects inside one another at most. Messages of other producers may be nested deeper than
/// documents of clients.
const DEPTH_MAX: usize = 127;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Tree<'a> {
    #[default]
    Null,
    Bool(bool),
    /// Number as it is written.
    Number(&'a str),
    String(Cow<'a, str>),
    Array(Vec<Tree<'a>>),
    /// Members by name; of two with one name the later.
    Object(BTreeMap<Cow<'a, str>, Tree<'a>>),
}

impl<'a> Tree<'a> {
    /// Reads a text that is JSON already, as that of a [`RawValue`](serde_json::value::RawValue); `None`
    /// where it is nested too deep, or a string is no text.
    pub fn read(text: &'a str) -> Option<Self> {
        TreeReader { text, at: 0 }.value(DEPTH_MAX)
    }
}

struct TreeReader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> TreeReader<'a> {
    fn value(&mut self, depth_left: usize) -> Option<Tree<'a>> {
        match self.next()? {
            b'{' => self.object(depth_left.checked_sub(1)?),
            b'[' => self.array(depth_left.checked_sub(1)?),
            b'"' => self.string().map(Tree::String),
            b'-' | b'0'..=b'9' => {
                let is_part = |byte: u8| byte.is_ascii_digit() || b"+-.eE".contains(&byte);
                Some(Tree::Number(self.take(is_part)))
            }
            _ => match self.take(|byte| byte.is_ascii_lowercase()) {
                "null" => Some(Tree::Null),
                "true" => Some(Tree::Bool(true)),
                "false" => Some(Tree::Bool(false)),
                _ => None,
            },
        }
    }

    fn object(&mut self, depth_left: usize) -> Option<Tree<'a>> {
        self.at += 1;
        let mut members = BTreeMap::new();
        while self.next()? != b'}' {
            self.skip_comma()?;
            let name = self.string()?;
            if self.next()? != b':' {
                return None;
            }
            self.at += 1;
            members.insert(name, self.value(depth_left)?);
        }
        self.at += 1;
        Some(Tree::Object(members))
    }

    fn array(&mut self, depth_left: usize) -> Option<Tree<'a>> {
        self.at += 1;
        let mut elements = Vec::new();
        while self.next()? != b']' {
            self.skip_comma()?;
            elements.push(self.value(depth_left)?);
        }
        self.at += 1;
        Some(Tree::Array(elements))
    }

    /// Content of the string that begins here.
    fn string(&mut self) -> Option<Cow<'a, str>> {
        if self.text.as_bytes().get(self.at) != Some(&b'"') {
            return None;
        }
        let (start, mut end, mut has_escapes) = (self.at, self.at + 1, false);
        loop {
            match self.text.as_bytes().get(end)? {
                b'"' => break,
                b'\\' => {
                    has_escapes = true;
                    end += 2;
                }
                _ => end += 1,
            }
        }
        self.at = end + 1;
        let quoted = self.text.get(start..=end)?;
        if has_escapes {
            serde_json::from_str(quoted).map(Cow::Owned).ok()
        } else {
            Some(Cow::Borrowed(&quoted[1..quoted.len() - 1]))
        }
    }

    fn skip_comma(&mut self) -> Option<()> {
        if self.next()? == b',' {
            self.at += 1;
            self.next()?;
        }
        Some(())
    }

    fn take(&mut self, is_part: impl Fn(u8) -> bool) -> &'a str {
        let rest = &self.text[self.at..];
        let length = rest.bytes().position(|byte| !is_part(byte)).unwrap_or(rest.len());
        self.at += length;
        &rest[..length]
    }

    /// Next byte that is no white space; it is not consumed.
    fn next(&mut self) -> Option<u8> {
        self.take(|byte| byte.is_ascii_whitespace());
        self.text.as_bytes().get(self.at).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_has_what_the_text_says() {
        let text = " {\"b\" : [1.50, -0,\n1e400,{ }],\"\\u0061\":\"\\ud83d\\ude00\\u0000\", \"\":[true,false,null]} ";
        let Some(Tree::Object(members)) = Tree::read(text) else { panic!("an object") };
        assert_eq!(members.keys().collect::<Vec<_>>(), ["", "a", "b"]);
        let numbers = ["1.50", "-0", "1e400"].map(Tree::Number);
        let elements: Vec<_> = numbers.into_iter().chain([Tree::Object(BTreeMap::new())]).collect();
        assert_eq!(members["b"], Tree::Array(elements));
        assert_eq!(members["a"], Tree::String("\u{1f600}\0".into()));
        assert_eq!(members[""], Tree::Array(vec![Tree::Bool(true), Tree::Bool(false), Tree::Null]));
    }

    #[test]
    fn what_cannot_be_read_is_none() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(Tree::read(&nested(DEPTH_MAX)).is_some());
        assert_eq!(Tree::read(&nested(DEPTH_MAX + 1)), None);
        for text in ["", "[", "{\"a\":", r#"["\ud800"]"#, r#"{"\udc00":1}"#, "nul"] {
            assert_eq!(Tree::read(text), None, "{text}");
        }
    }
}
