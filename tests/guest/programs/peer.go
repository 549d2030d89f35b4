// An end of a connection by Go and github.com/mdlayher/vsock, for tests/guest/peers:
//
//	peer connect CID PORT       standard input goes to the connection, and what comes from it to standard output
//	peer listen PORT            the same with the first client
//	peer echo PORT              sends back what comes, to each client
//	peer many CID PORT COUNT    has COUNT connections at once, and sends a line on each, which must come back
package main

import (
	"bufio"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"strconv"

	"github.com/mdlayher/vsock"
)

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func number(index int) uint32 {
	value, err := strconv.ParseUint(os.Args[index], 10, 32)
	check(err)
	return uint32(value)
}

func dial() *vsock.Conn {
	conn, err := vsock.Dial(number(2), number(3), nil)
	check(err)
	return conn
}

func listen() *vsock.Listener {
	listener, err := vsock.Listen(number(2), nil)
	check(err)
	return listener
}

// join copies both ways until both have ended.
func join(conn *vsock.Conn) {
	fmt.Fprintf(os.Stderr, "here %s, there %s\n", conn.LocalAddr(), conn.RemoteAddr())
	received := make(chan error)
	go func() {
		_, err := io.Copy(os.Stdout, conn)
		os.Stdout.Close()
		received <- err
	}()
	_, err := io.Copy(conn, os.Stdin)
	check(err)
	check(conn.CloseWrite())
	check(<-received)
}

func echo() {
	listener := listen()
	for {
		conn, err := listener.Accept()
		check(err)
		go func(conn net.Conn) {
			defer conn.Close()
			io.Copy(conn, conn)
		}(conn)
	}
}

func many() {
	conns := make([]*vsock.Conn, number(4))
	for i := range conns {
		conns[i] = dial()
	}
	for i, conn := range conns {
		_, err := fmt.Fprintf(conn, "connection %d\n", i)
		check(err)
	}
	for i, conn := range conns {
		line, err := bufio.NewReader(conn).ReadString('\n')
		check(err)
		if line != fmt.Sprintf("connection %d\n", i) {
			log.Fatalf("%q came back on connection %d", line, i)
		}
	}
}

func main() {
	switch os.Args[1] {
	case "connect":
		join(dial())
	case "listen":
		listener := listen()
		conn, err := listener.Accept()
		check(err)
		listener.Close()
		join(conn.(*vsock.Conn))
	case "echo":
		echo()
	case "many":
		many()
	}
}
