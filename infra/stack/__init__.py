"""The servers that a team would run, from packages alone: `make stack`.

    postgres   both servers' databases, on a unix socket
    store      an S3 server: data sets, checkpoints, MLflow's files
    mlflow     runs and models; clients send files through it, so that it alone needs the store's key for them
    prefect    the API, its schedules and the UI
    worker     runs what the deployments ask for, each flow run a process
    reconcile  closes, in Prefect and in MLflow, what died without a word
    deploy     puts the deployments and automations in place, says where everything is, and ends

Everything listens on loopback only and keeps its state under PIPELINE_HOME. supervisor holds it together: it starts
again what dies, and ends all of it on Ctrl-C.
"""
