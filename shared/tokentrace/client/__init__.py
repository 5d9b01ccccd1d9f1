"""
What applications import. Each package has one part, and ``tokentrace`` imports a name from it when it is first used.

* ``reporter``: sends spans to a pipeline in the background.
* ``transports``: where a tracer hands its spans to: a pipeline, a server, a file, the standard output, a test.
* ``tracing``: tracers, traces and open spans, and the context that carries them.
* ``money``: what calls cost, and budgets of one process or of many.
* ``track``: tracks the calls of providers' SDKs.
* ``usage``: what the response of a provider tells about a call.
* ``middleware``: traces of the requests of web applications and of the tasks of Celery.
* ``sessions``: sessions, in a pipeline or in this process.
* ``rules``: functions that make alert rules.
"""
