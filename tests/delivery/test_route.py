"""The way to the server: which proxy a configuration means."""

import pytest

from infi.ramen_client.delivery.route import route_from


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("http://proxy", "http://proxy:80"),
        ("http://user:pass@proxy/", "http://user:pass@proxy:80"),
        ("https://proxy", "https://proxy:443"),
        ("proxy", "proxy:80"),
        ("http://[::1]", "http://[::1]:80"),
        ("http://[::1]:3128", "http://[::1]:3128"),
        ("http://proxy:3128", "http://proxy:3128"),
        ("socks5h://proxy", "socks5h://proxy"),
    ],
)
def test_a_proxy_without_a_port_has_that_of_its_scheme_as_in_1x(given, used):
    assert route_from(proxy=given, environ={}, system_files=()).proxy == used
