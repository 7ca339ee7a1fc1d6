# A job as it is written for Nomad's own docker driver: a template whose change sends a signal.
job "signalled" {
  group "main" {
    task "main" {
      driver = "docker"

      config {
        image   = "redis:7"
        command = "sh"
        args    = ["-c", "trap 'cat /local/color' HUP; cat /local/color; while :; do sleep 0.1; done"]
        init    = true
      }

      template {
        data          = "{{ with nomadVar \"nomad/jobs/signalled\" }}{{ .color }}{{ end }}\n"
        destination   = "local/color"
        change_mode   = "signal"
        change_signal = "SIGHUP"
      }

      kill_timeout = "1s"

      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
