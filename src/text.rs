pub fn escape(text: &str) -> String {
    text.escape_debug().collect()
}
