//! The defaults, as the table in the documentation has them.

use std::time::Duration;

use meshca_xds::SdsOptions;

#[test]
fn the_defaults() {
    let options = SdsOptions::default();
    assert_eq!(options.max_request, 256 * 1024);
    assert_eq!(options.max_first_request, 128 * 1024);
    assert_eq!(options.max_names, 100);
    assert_eq!(options.max_name, 1024);
    assert_eq!(options.max_streams, 100);
    assert_eq!(options.max_connections, 20_000);
    assert_eq!(options.request_rate.get(), 10);
    for time in [
        options.first_request,
        options.authentication,
        options.handshake,
    ] {
        assert_eq!(time, Duration::from_secs(10));
    }
    assert_eq!(options.keepalive, Duration::from_secs(30));
    assert_eq!(options.keepalive_timeout, Duration::from_secs(20));
}
