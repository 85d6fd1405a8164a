//! The small services that Forebay replaces, each as its own README would show it: plain HTTP,
//! nothing of Forebay's code. What passes here can be switched over.
mod click_counter;
mod event_counters;
mod json_intake;
mod live_metrics;
