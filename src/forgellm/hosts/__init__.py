"""Other machines that train along: named in `hosts.toml`, reached over ssh, checked beforehand."""
