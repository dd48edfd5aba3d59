"""The same server on Ray Serve, for when one machine is not enough.

`llm_server.cluster:app` is the builder for `serve run`, `serve deploy` and KubeRay. Nothing
outside of this package knows of Ray.
"""


def __getattr__(name: str) -> object:
    # Ray is imported by who asks for it: the arithmetic of this package does without.
    if name == "app":
        from llm_server.cluster.build import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
