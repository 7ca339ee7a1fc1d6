# A job as it is written for Nomad's own docker driver: a task before the main one, one beside it, and two after.
job "lifecycle" {
  type = "batch"

  group "main" {
    restart {
      attempts = 0
      mode     = "fail"
    }

    task "init" {
      driver = "docker"

      lifecycle {
        hook = "prestart"
      }

      config {
        image      = "redis:7"
        entrypoint = ["/bin/sh", "-c"]
        args       = ["echo init >> ${NOMAD_ALLOC_DIR}/data/order"]
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }

    task "shipper" {
      driver = "docker"

      lifecycle {
        hook    = "prestart"
        sidecar = true
      }

      config {
        image   = "redis:7"
        command = "/bin/sh"
        args    = ["-c", "echo shipper >> /alloc/data/order; trap 'exit 0' TERM; while :; do sleep 0.1; done"]
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }

    task "main" {
      driver = "docker"

      config {
        image   = "redis:7"
        command = "sh"
        args    = ["-c", "echo main >> /alloc/data/order; until [ -e /alloc/data/go ]; do sleep 0.1; done; echo end >> /alloc/data/order"]
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }

    task "announce" {
      driver = "docker"

      lifecycle {
        hook = "poststart"
      }

      config {
        image   = "redis:7"
        command = "sh"
        args    = ["-c", "until grep -q main /alloc/data/order; do sleep 0.1; done; echo announce >> /alloc/data/order; touch /alloc/data/go"]
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }

    task "clean" {
      driver = "docker"

      lifecycle {
        hook = "poststop"
      }

      config {
        image   = "redis:7"
        command = "sh"
        args    = ["-c", "echo clean >> /alloc/data/order"]
      }

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
