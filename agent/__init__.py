"""The node agent: carries out runtime actions on one node of an Apache Iggy deployment."""
