//! Query strings.

/// The pairs of a query string (`application/x-www-form-urlencoded`).
pub fn pairs(query: &str) -> Vec<(String, String)> {
    form_urlencoded::parse(query.as_bytes()).into_owned().collect()
}
