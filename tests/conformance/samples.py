"""A connector file of each kind, for the two plugins that Iggy builds beside its connectors runtime."""

SOURCE = """\
type = "source"
key = "random"
enabled = true
version = 0
name = "Random source"
path = "libiggy_connector_random_source"
plugin_config_format = "json"

[[streams]]
stream = "orders"
topic = "placed"
schema = "json"
batch_length = 100
linger_time = "5ms"

[plugin_config]
interval = "50ms"
max_count = 100000
messages_range = [1, 5]
payload_size = 50
"""
SINK = """\
type = "sink"
key = "stdout"
enabled = true
version = 0
name = "Stdout sink"
path = "libiggy_connector_stdout_sink"

[[streams]]
stream = "orders"
topics = ["placed"]
schema = "json"
batch_length = 100
poll_interval = "5ms"
consumer_group = "stdout"

[plugin_config]
print_payload = false
"""
